//! Files: ways out of their folder, and what is in them and in their names.
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::artifacts::{below, writes};

pub(super) fn rows() -> Vec<Row> {
    let id = "01920000-0000-4000-8000-000000000001";
    let ways_out = [
        "../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "..%5c..%5cetc",
        "%252e%252e%252fetc%252fpasswd",
        "%252e%252e/etc/passwd",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "%c0%ae%c0%ae%c0%afetc",
        "%FF",
        "..;/etc/passwd",
        "file:///etc/passwd",
        &format!("{id}."),
        &format!("{id}%2e"),
        &format!("{id}%00"),
        &format!("{id}%00.txt"),
        &format!("{id}/"),
        &format!("{id}/x"),
        &format!("%20{id}"),
        &format!("{{{id}}}"),
        &id.replace('-', ""),
        &"a".repeat(10_000),
        "",
    ];
    let rows = ways_out.iter().map(|way| {
        let short: String = way.chars().take(60).collect();
        row(
            format!("B090 {short:?}"),
            ask("GET", &format!("/artifacts/{way}"), &[]),
            404,
            "not_found",
        )
    });
    rows.collect()
}

#[tokio::test]
async fn there_is_no_way_out_of_the_folder_of_files() {
    refused_all(rows()).await;
}

/// The headers, to the byte, and the body of one file's download.
async fn download(gateway: &Gateway, url: &str) -> (String, Vec<u8>) {
    let mut stream = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
    let ask = format!("GET {url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    soon("the whole answer", stream.read_to_end(&mut bytes)).await.unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a head in ASCII");
    (head, bytes.split_off(end + 4))
}

/// A gateway, and the addresses of these files, which a run made.
async fn kept(files: &[(&str, &str)]) -> (Gateway, Vec<String>) {
    let upstream = Upstream::start([writes(files), openai::answer(&["Done"])]).await;
    let gateway = Gateway::with(&upstream)
        .toml("[agents.assistant]\ntools = [\"write_file\"]")
        .start()
        .await;
    let answer = post(&gateway, "/chat", json!({"message": "Hi"})).await.json().await;
    let made = answer["artifact_files"].as_array().expect("files").iter();
    let urls: Vec<String> = made.map(|file| file["url"].as_str().unwrap().to_owned()).collect();
    assert_eq!(urls.len(), files.len(), "{answer}");
    (gateway, urls)
}

#[tokio::test]
async fn a_name_is_one_header_line_whatever_is_in_it() {
    let long = format!("{}.txt", "n".repeat(300));
    let names = [
        "a\"b\";filename=\"c.exe",
        "a\r\nX-Evil: 1\r\n\r\n<script>",
        "\u{202E}txt.exe",
        "\u{2066}a\u{2069}\u{200F}.txt",
        &long,
        "CON",
        "CON.txt",
        "../../../etc/passwd",
        "..\\..\\win.ini",
        ".bashrc",
        "%0d%0aX-Evil: 1",
        "a\0b.txt",
        "👩‍👩‍👧 é.txt",
        "=?UTF-8?B?aGk=?=",
        "..",
    ];
    let (gateway, urls) = kept(&names.map(|name| (name, "words"))).await;
    for (name, url) in names.iter().zip(&urls) {
        let (head, body) = download(&gateway, url).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{name:?}: {head}");
        assert_eq!(body, b"words", "{name:?}");
        let told: Vec<&str> = head
            .lines()
            .filter(|line| line.starts_with("content-disposition:"))
            .collect();
        let [told] = told[..] else { panic!("{name:?}: {head}") };
        assert!(!head.to_lowercase().contains("\r\nx-evil"), "{name:?}: {head}");
        // As RFC 6266 has it: both forms, quotes only around the first, nothing but visible ASCII in either.
        let told = told
            .strip_prefix("content-disposition: attachment; filename=\"")
            .expect(told);
        let (plain, spelled) = told.split_once("\"; filename*=UTF-8''").expect(told);
        assert!(
            plain
                .bytes()
                .all(|b| matches!(b, b' '..=b'~') && !b"\"\\%/".contains(&b)),
            "{plain}"
        );
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~%".contains(&b);
        assert!(spelled.bytes().all(allowed) && !spelled.is_empty(), "{spelled}");
        for hidden in ["%2F", "%5C", "%00", "%0D", "%0A", "%E2%80%AE", "%E2%81%A6"] {
            assert!(!spelled.contains(hidden), "{name:?}: {spelled}");
        }
        assert!(spelled.len() < 3 * 4 * 130, "{spelled}");
        assert!(!matches!(spelled, "." | ".."), "{spelled}");
    }
}

#[tokio::test]
async fn a_file_that_a_browser_would_run_is_only_saved() {
    let polyglot = "%PDF-1.4\n<html><script>alert(1)</script><svg onload=alert(1)>";
    let files = [
        ("a.html", "<script>alert(1)</script>"),
        ("a.svg", "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
        (
            "a.xhtml",
            "<html xmlns='http://www.w3.org/1999/xhtml'><script>alert(1)</script></html>",
        ),
        ("a.js", "alert(1)"),
        ("a.txt", polyglot),
        ("a.pdf", "# Words\n\n<script>alert(1)</script>"),
    ];
    let (gateway, urls) = kept(&files).await;
    for ((name, _), url) in files.iter().zip(&urls) {
        let (head, _) = download(&gateway, url).await;
        for line in [
            "content-type: application/octet-stream",
            "x-content-type-options: nosniff",
            "content-security-policy: default-src 'none'; sandbox",
        ] {
            assert_eq!(
                head.lines().filter(|told| *told == line).count(),
                1,
                "{name}: {line} in {head}"
            );
        }
        assert!(head.contains("\r\ncontent-disposition: attachment; "), "{name}: {head}");
    }
}

/// Whoever can write into the folder can put anything there; the gateway serves what it wrote, or nothing.
#[tokio::test]
async fn what_stands_in_the_place_of_a_file_is_not_served() {
    let (gateway, urls) = kept(&[("a.txt", "words")]).await;
    let path = below(&gateway.folder().join("artifacts")).remove(0);
    let secret = gateway.folder().join("secret");
    std::fs::write(&secret, "12345").unwrap(); // as long as what was kept
    let command = |program: &str| {
        let made = std::process::Command::new(program).arg(&path).status();
        assert!(made.unwrap().success());
    };
    let stand_ins: [(&str, &dyn Fn()); 5] = [
        ("a link", &|| std::os::unix::fs::symlink(&secret, &path).unwrap()),
        ("a pipe", &|| command("mkfifo")),
        ("a folder", &|| command("mkdir")),
        ("a file that grew", &|| std::fs::write(&path, "words and more").unwrap()),
        ("nothing", &|| {}),
    ];
    for (what, put) in stand_ins {
        if path.is_dir() {
            std::fs::remove_dir(&path).unwrap();
        } else {
            let _ = std::fs::remove_file(&path); // the last one was nothing
        }
        put();
        let refusal = refused(get(&gateway, &urls[0]).await).await;
        assert_eq!(refusal["code"], "not_found", "{what}");
    }
}
