// An MCP server of the official Go SDK for tests: `server FILE [open]`. It writes its port to FILE
// and counts live sessions at /sessions.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func main() {
	server := mcp.NewServer(&mcp.Implementation{Name: "go", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "echo", Description: "says it again"},
		func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
			return &mcp.CallToolResult{}, nil, nil
		})
	open := len(os.Args) > 2 && os.Args[2] == "open"
	handler := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server },
		&mcp.StreamableHTTPOptions{DisableLocalhostProtection: open})
	http.Handle("/mcp", handler)
	http.HandleFunc("/sessions", func(answer http.ResponseWriter, _ *http.Request) {
		count := 0
		for range server.Sessions() {
			count++
		}
		fmt.Fprint(answer, count)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	part := os.Args[1] + ".part"
	port := listener.Addr().(*net.TCPAddr).Port
	if err := os.WriteFile(part, []byte(fmt.Sprint(port)), 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(part, os.Args[1]); err != nil {
		panic(err)
	}
	panic(http.Serve(listener, nil))
}
