//! nginx copying the mock's bytes: the yardstick. One process, no buffering, connections to the mock kept open.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::{Place, Subject, free_port};

/// Which binary.
#[derive(Debug, Clone)]
pub struct Nginx {
    /// `nginx`, 1.19.5 or later (for `-e`).
    pub program: PathBuf,
}

impl Nginx {
    /// Starts it in front of the mock.
    ///
    /// # Errors
    /// When it does not serve, with the end of its log.
    pub async fn start(&self, place: &Place) -> Result<Subject> {
        let folder = place.folder("nginx")?;
        let port = free_port()?;
        let at = folder.path().join("nginx.conf");
        fs::write(&at, configuration(port, place.upstream))?;
        let mut command = place.command(&self.program);
        command
            .arg("-p")
            .arg(folder.path())
            .args(["-e", "stderr", "-c"])
            .arg(&at);
        Subject::start("nginx", command, port, folder, "/readyz").await
    }
}

/// Paths in it are relative to `-p`. `master_process off` makes the one child the worker itself: its pid is what is
/// measured, and it is what SIGTERM ends.
fn configuration(port: u16, upstream: u16) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("    {what}_temp_path {what};\n"))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n    access_log off;\n{temporary}    keepalive_requests 10000000;\n    keepalive_timeout 300s;\n    \
         upstream mock {{\n        server 127.0.0.1:{upstream};\n        keepalive 4096;\n        \
         keepalive_requests 10000000;\n        keepalive_timeout 300s;\n    }}\n    \
         server {{\n        listen 127.0.0.1:{port} backlog=4096;\n        tcp_nodelay on;\n        \
         location = /readyz {{ return 200; }}\n        location / {{\n            proxy_pass http://mock;\n            \
         proxy_http_version 1.1;\n            proxy_set_header Connection \"\";\n            proxy_buffering off;\n            \
         proxy_read_timeout 120s;\n        }}\n    }}\n}}\n"
    )
}
