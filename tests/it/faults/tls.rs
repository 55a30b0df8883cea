//! The rows that need certificates: F05 to F07, and what HTTP/2 comes to (F14). They are played by the real program, which
//! is told whom to trust as anybody would tell it: by `SSL_CERT_FILE`.

use std::time::Duration;

use super::KEY;
use super::row::{Row, Who, answered, refused};
use super::run;
use super::story::{FORMATS, story, upstream};
use crate::house::tls::{Authority, Door, Shows};
use crate::house::{Dialect, Gateway, Place, openai};

/// A row, what its provider's door shows, and how many connections it takes.
fn rows() -> Vec<(Row, Shows, usize)> {
    let row = |name: &str, provider, outcome| Row::new(name, [], outcome).who(Who::Named(provider)).calls(0);
    let tls = || refused(502, "upstream_tls");
    vec![
        (
            Row::new(
                "F05 a good certificate",
                [openai::answer(&["Well."]).cut()],
                answered("Well."),
            )
            .who(Who::Named("good")),
            Shows::Good,
            1,
        ),
        (
            row("F05 a certificate of the past", "expired", tls()).kind("tls"),
            Shows::Expired,
            1,
        ),
        (
            row("F05 a certificate of somebody else's", "another", tls()).kind("tls"),
            Shows::AnotherName,
            1,
        ),
        (
            row("F05 a certificate that nobody signed", "alone", tls()).kind("tls"),
            Shows::SelfSigned,
            1,
        ),
        (
            row(
                "F06 a handshake, and silence",
                "silent",
                refused(504, "upstream_timeout"),
            )
            .kind("connect_timeout")
            .not_before(950),
            Shows::Silence,
            1,
        ),
        (
            row("F07 a RST in the handshake", "torn", tls())
                .kind("tls")
                .again("tls", 2),
            Shows::Reset,
            3,
        ),
        // Upstream connections are HTTP/1.1 by decision; nothing else is offered.
        (
            row("F14 an upstream that speaks HTTP/2 alone", "modern", tls()).kind("tls"),
            Shows::Http2Alone,
            1,
        ),
    ]
}

#[test]
fn a_provider_that_cannot_show_who_it_is_is_not_asked() {
    run(async {
        let (authority, (upstream, lines)) = (Authority::new(), upstream(Dialect::OpenAi).await);
        let mut toml = format!(
            "[log]\nfilter = \"debug\"\n[providers.openai]\napi_key = \"{KEY}\"\n[agents.assistant]\nallowed_models = [\"*\"]\n\
             [providers.well]\nkind = \"openai\"\nbase_url = \"{}\"\n",
            upstream.base_url()
        );
        let mut doors = Vec::new();
        for (row, shows, _) in rows() {
            let Who::Named(name) = row.who else {
                unreachable!("every row has its door")
            };
            let door = Door::before(&upstream, shows, &authority).await;
            let patience = if shows == Shows::Silence { "1s" } else { "8s" };
            toml += &format!(
                "[providers.{name}]\nkind = \"openai\"\nbase_url = \"https://{}/v1\"\napi_key = \"{KEY}\"\n\
                 connect_timeout = \"{patience}\"\nfirst_byte_timeout = \"10s\"\n",
                door.addr()
            );
            doors.push(door);
        }
        let trusted = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(trusted.path(), authority.pem()).expect("a writable file");
        let recipe = Gateway::with(&upstream).patient().toml(&toml);
        let env = [("SSL_CERT_FILE", trusted.path().to_str().expect("a plain path"))];
        let mut process = recipe.spawn_in(&env).await;

        for format in FORMATS {
            for ((row, _, connections), door) in rows().iter().zip(&doors) {
                let before = door.connections();
                eprintln!("{} ({format:?})", row.name);
                story(&process, &upstream, &lines, row, format).await;
                assert_eq!(door.connections() - before, *connections, "{}", row.name);
            }
        }
        for at in [0, doors.len() - 1] {
            assert_eq!(doors[at].offered(), ["http/1.1"]);
        }
        process.terminate().await;
        process.wait_exit(Duration::from_secs(10)).await;
    });
}
