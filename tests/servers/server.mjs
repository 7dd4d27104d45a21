// A server of the TypeScript SDK for tests: `node server.mjs FILE [FLAG…]`. It writes its port to
// FILE once it listens. Streamable HTTP at /mcp, live sessions at /sessions. Flags: json, stateless,
// sse (HTTP+SSE at /sse), hosts (the SDK's Express app, which knows loopback names only), auth (a
// bearer token), stdio (on standard input and output, FILE is ignored), slow=SECONDS (before that).
import { randomUUID } from "node:crypto";
import { renameSync, writeFileSync } from "node:fs";
import { createMcpExpressApp } from "@modelcontextprotocol/sdk/server/express.js";
import { InvalidTokenError } from "@modelcontextprotocol/sdk/server/auth/errors.js";
import { requireBearerAuth } from "@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { SSEServerTransport } from "@modelcontextprotocol/sdk/server/sse.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import { isInitializeRequest } from "@modelcontextprotocol/sdk/types.js";
import express from "express";

const [file, ...given] = process.argv.slice(2);
const flags = new Map(given.map((flag) => flag.split("=")));
const live = new Map();

function server() {
  const made = new McpServer({ name: "typescript", version: "1" });
  made.registerTool("echo", {}, async () => ({ content: [] }));
  return made;
}

async function transport(request) {
  const session = request.headers["mcp-session-id"];
  if (session) return live.get(session);
  if (!flags.has("stateless") && !isInitializeRequest(request.body)) return undefined;
  const made = new StreamableHTTPServerTransport({
    sessionIdGenerator: flags.has("stateless") ? undefined : randomUUID,
    enableJsonResponse: flags.has("json"),
    onsessioninitialized: (id) => live.set(id, made),
  });
  made.onclose = () => live.delete(made.sessionId);
  await server().connect(made);
  return made;
}

async function streamable(request, response) {
  const found = await transport(request);
  if (found) return found.handleRequest(request, response, request.body);
  const error = { code: -32000, message: "Bad Request: No valid session ID provided" };
  return response.status(400).json({ jsonrpc: "2.0", error, id: null });
}

async function stdio() {
  await new Promise((go) => setTimeout(go, 1000 * Number(flags.get("slow") ?? 0)));
  await server().connect(new StdioServerTransport());
}

function http() {
  const app = flags.has("hosts") ? createMcpExpressApp() : express().use(express.json());
  if (flags.has("auth")) {
    const verifyAccessToken = async (token) => {
      if (token !== "good") throw new InvalidTokenError("no");
      return { token, clientId: "test", scopes: [], expiresAt: Date.now() / 1000 + 3600 };
    };
    app.use("/mcp", requireBearerAuth({ verifier: { verifyAccessToken } }));
  }
  if (flags.has("sse")) {
    const streams = new Map();
    app.get("/sse", async (_, response) => {
      const made = new SSEServerTransport("/messages", response);
      streams.set(made.sessionId, made);
      await server().connect(made);
    });
    app.post("/messages", (request, response) =>
      streams.get(request.query.sessionId).handlePostMessage(request, response, request.body),
    );
  } else {
    app.all("/mcp", streamable);
  }
  app.get("/sessions", (_, response) => response.send(String(live.size)));
  const listener = app.listen(0, "127.0.0.1", () => {
    writeFileSync(`${file}.part`, String(listener.address().port));
    renameSync(`${file}.part`, file);
  });
}

await (flags.has("stdio") ? stdio() : http());
