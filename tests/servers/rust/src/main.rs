//! An MCP server of the official Rust SDK for tests: `server FILE [open]`. It writes its port to
//! FILE.
use rmcp::transport::streamable_http_server::{
    session::local::LocalSessionManager, StreamableHttpServerConfig, StreamableHttpService,
};
use rmcp::ServerHandler;

#[derive(Clone)]
struct Server;

impl ServerHandler for Server {}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let mut config = StreamableHttpServerConfig::default();
    if arguments.get(2).map(String::as_str) == Some("open") {
        config = config.disable_allowed_hosts();
    }
    let service: StreamableHttpService<Server, LocalSessionManager> =
        StreamableHttpService::new(|| Ok(Server), Default::default(), config);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let part = format!("{}.part", arguments[1]);
    std::fs::write(&part, listener.local_addr()?.port().to_string())?;
    std::fs::rename(&part, &arguments[1])?;
    axum::serve(listener, axum::Router::new().nest_service("/mcp", service)).await
}
