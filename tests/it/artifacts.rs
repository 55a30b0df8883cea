//! Files that runs make: told of, downloaded, and gone for good with their session.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use sluicegate::chat::{Artifact, ArtifactId, Principal, RunId, SessionId};
use sluicegate::store::{self, ArtifactRecord, Blobs};

use crate::contract::Spec;
use crate::house::{Body, Call, Gate, Gateway, Place, Script, Upstream, delete, gateway::Recipe, get, openai, post};

/// The agent has the tool.
const WITH_FILES: &str = "[agents.assistant]\ntools = [\"write_file\"]";

/// A round that asks for these files.
pub(crate) fn writes(files: &[(&str, &str)]) -> Script {
    let mut script = Script::sse().role();
    for (at, (name, content)) in files.iter().enumerate() {
        let arguments = json!({"name": name, "content": content}).to_string();
        script = script.send(openai::tool_delta(at, &*format!("call_{at}"), "write_file", &arguments));
    }
    script.finish("tool_calls").usage(1, 2).done().end()
}

/// An upstream whose runs each write one file of this content.
async fn writer(name: &str, content: &str) -> Upstream {
    let run = || [writes(&[(name, content)]), openai::answer(&["Done"])];
    Upstream::start((0..4).flat_map(|_| run())).await
}

/// Asks, and gives the answer's files.
async fn files(place: &impl Place, question: Value) -> Vec<Value> {
    let answer = post(place, "/chat", question).await.expect(200).await.json().await;
    answer["artifact_files"].as_array().expect("a list").clone()
}

fn url(file: &Value) -> String {
    file["url"].as_str().expect("a place").to_owned()
}

async fn download(place: &impl Place, file: &Value, headers: &[(&str, &str)]) -> Body {
    let call = headers
        .iter()
        .fold(Call::get(&url(file)), |call, (name, value)| call.header(name, value));
    call.to(place).await.body().await
}

/// Whether a browser that gets this, or joins it to what it has kept, saves it and shows nothing.
fn assert_shown_nowhere(body: &Body, what: &str) {
    let disposition = body.headers.get("content-disposition").unwrap_or_default();
    assert!(disposition.starts_with("attachment; "), "{what}: {disposition}");
    assert_eq!(body.headers.get("x-content-type-options"), Some("nosniff"), "{what}");
    let policy = body.headers.get("content-security-policy");
    assert_eq!(policy, Some("default-src 'none'; sandbox"), "{what}");
}

/// Every file below this folder.
pub(crate) fn below(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(below(&path)),
            false => all.push(path),
        }
    }
    all
}

fn with_files(upstream: &Upstream) -> Recipe {
    Gateway::with(upstream).toml(WITH_FILES)
}

#[tokio::test]
async fn a_file_is_told_of_before_its_result_and_downloaded() {
    let upstream = writer("notes/Résumé \"1\".html", "<script>alert(1)</script>").await;
    let gateway = with_files(&upstream).start().await;
    let question = json!({"message": "Write it down", "session_id": "s", "format": "json"});
    let told = post(&gateway, "/chat/sse", question).await.transcript().await;
    assert_eq!(
        told.kinds(),
        ["start", "tool_call", "artifact", "tool_result", "token", "done"]
    );
    let spec = Spec::read();
    let mut failed = Vec::new();
    for event in &told.events {
        failed.extend(spec.objections_to_chunk(&event.json()));
    }
    let file = told.events[2].json()["artifact"].clone();
    assert_eq!(file["name"], "Résumé \"1\".html");
    assert_eq!(file["size"], 25);
    assert_eq!(told.done()["artifact_files"], json!([file]));
    assert_eq!(told.done()["response"]["artifact_files"], json!([file]));

    let body = download(&gateway, &file, &[]).await;
    failed.extend(spec.check("GET", &url(&file), &body).err());
    assert_eq!((body.status, body.text()), (200, "<script>alert(1)</script>"));
    for (name, value) in [
        ("content-type", "application/octet-stream"),
        ("content-length", "25"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
        ("cache-control", "private, no-cache"),
        ("accept-ranges", "bytes"),
        (
            "content-disposition",
            "attachment; filename=\"R_sum_ _1_.html\"; filename*=UTF-8''R%C3%A9sum%C3%A9%20%221%22.html",
        ),
    ] {
        assert_eq!(body.headers.get(name), Some(value), "{name}");
    }
    let tag = format!("\"{}\"", file["sha256"].as_str().unwrap());
    assert_eq!(body.headers.get("etag"), Some(&*tag));

    // Its owner alone; every other name looks the same.
    let unknown = format!("/artifacts/{}", ArtifactId::generate());
    let upper = url(&file).to_uppercase().replace("/ARTIFACTS", "/artifacts");
    for path in [
        unknown.as_str(),
        upper.as_str(),
        "/artifacts/x",
        "/artifacts/",
        "/artifacts/..%2f..%2fetc%2fpasswd",
        "/artifacts/%2e%2e/etc/passwd",
        "/artifacts/..%5c..%5cetc",
        "/artifacts/%252e%252e%252f",
        "/artifacts//etc/passwd",
        "/artifacts/%c0%ae%c0%ae",
        &format!("{}.", url(&file)),
        &format!("{}/", url(&file)),
        &format!("{}%00", url(&file)),
    ] {
        assert_eq!(get(&gateway, path).await.problem().await, "not_found", "{path}");
    }
    let refused = get(&gateway, &unknown).await.body().await;
    failed.extend(spec.check("GET", &unknown, &refused).err());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn whatever_a_file_claims_to_be_it_is_bytes_to_be_saved_under_a_harmless_name() {
    let polyglot = "%PDF-1.4\n<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/><script>alert(1)</script>";
    let long = format!("{}.html", "n".repeat(300));
    let rows = [
        ("x.html", "x.html"),
        ("x.svg", "x.svg"),
        ("x.xhtml", "x.xhtml"),
        ("x.js", "x.js"),
        ("CON", "CON"),
        ("../../../etc/passwd.html", "passwd.html"),
        ("/etc/passwd", "passwd"),
        ("C:\\Windows\\win.ini", "win.ini"),
        ("...", "file"),
        (
            "a\r\nSet-Cookie: a=b\r\n\r\n<script>.html",
            "aSet-Cookie: a=b<script>.html",
        ),
        ("a\u{0}b.html", "ab.html"),
        ("\u{202e}lmth.x", "lmth.x"),
        (
            "\";filename*=UTF-8''evil.exe;x=\".html",
            "\";filename*=UTF-8''evil.exe;x=\".html",
        ),
        ("%2e%2e%2fx.html", "%2e%2e%2fx.html"),
        ("🦀.html", "🦀.html"),
        (&long, &format!("{}.html", "n".repeat(123))),
    ];
    let mut scripts = Vec::new();
    for (name, _) in &rows {
        scripts.extend([writes(&[(name, polyglot)]), openai::answer(&["Done"])]);
    }
    let upstream = Upstream::start(scripts).await;
    let gateway = with_files(&upstream).start().await;
    for (name, kept) in rows {
        let file = &files(&gateway, json!({"message": "Hi"})).await[0];
        assert_eq!(file["name"], kept, "{name:?}");
        for headers in [
            &[][..],
            &[("Accept", "text/html")],
            &[("Range", "bytes=9-")],
            &[("Sec-Fetch-Dest", "iframe")],
        ] {
            let body = download(&gateway, file, headers).await;
            assert_shown_nowhere(&body, name);
            assert_eq!(
                body.headers.get("content-type"),
                Some("application/octet-stream"),
                "{name:?}"
            );
            assert_eq!(body.headers.get("set-cookie"), None);
            let disposition = body.headers.get("content-disposition").unwrap();
            assert!(disposition.bytes().all(|b| (b' '..=b'~').contains(&b)), "{disposition}");
            assert_eq!(disposition.matches('"').count(), 2, "{disposition}");
            let (_, extended) = disposition.split_once("; filename*=UTF-8''").unwrap();
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~%".contains(&b);
            assert!(
                extended.split("; filename*=").last().unwrap().bytes().all(fits),
                "{disposition}"
            );
        }
    }
}

#[tokio::test]
async fn parts_and_copies_are_asked_for() {
    let upstream = writer("digits.txt", "0123456789").await;
    let gateway = with_files(&upstream).start().await;
    let file = &files(&gateway, json!({"message": "Hi"})).await[0];
    let tag = format!("\"{}\"", file["sha256"].as_str().unwrap());
    let spec = Spec::read();
    let mut failed = Vec::new();

    for (range, part, told) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-2", "89", "bytes 8-9/10"),
        ("bytes=0-999", "0123456789", "bytes 0-9/10"),
    ] {
        let body = download(&gateway, file, &[("Range", range)]).await;
        failed.extend(spec.check("GET", &url(file), &body).err());
        assert_eq!((body.status, body.text()), (206, part), "{range}");
        assert_shown_nowhere(&body, range);
        assert_eq!(body.headers.get("content-range"), Some(told));
    }
    for range in ["bytes=5-2", "bytes=-0", "bytes=10-", "bytes=x", "bytes"] {
        let body = download(&gateway, file, &[("Range", range)]).await;
        failed.extend(spec.check("GET", &url(file), &body).err());
        assert_eq!(
            (body.status, &body.json()["code"]),
            (416, &json!("range_invalid")),
            "{range}"
        );
        assert_eq!(body.headers.get("content-range"), Some("bytes */10"));
        assert_shown_nowhere(&body, range);
    }
    let many: Vec<String> = (0..1000).map(|at| format!("{at}-{at}")).collect();
    for (headers, what) in [
        (vec![("Range", "bytes=0-1,3-4".to_owned())], "several"),
        (vec![("Range", format!("bytes={}", many.join(",")))], "many"),
        (vec![("Range", "lines=1-2".to_owned())], "another unit"),
        (
            vec![("Range", "bytes=0-1".to_owned()), ("If-Range", "\"other\"".to_owned())],
            "another file",
        ),
        (
            vec![("Range", "bytes=0-1".to_owned()), ("If-Range", format!("W/{tag}"))],
            "a weak tag",
        ),
        (vec![("If-None-Match", "\"other\"".to_owned())], "another copy"),
        (vec![("Accept", "text/html".to_owned())], "another type"),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let body = download(&gateway, file, &headers).await;
        assert_eq!((body.status, body.text()), (200, "0123456789"), "{what}");
    }
    let same = download(&gateway, file, &[("Range", "bytes=0-1"), ("If-Range", &tag)]).await;
    assert_eq!((same.status, same.text()), (206, "01"));
    for copy in [tag.clone(), format!("W/{tag}"), "*".to_owned(), format!("\"a\", {tag}")] {
        let body = download(&gateway, file, &[("If-None-Match", &copy), ("Range", "bytes=0-1")]).await;
        failed.extend(spec.check("GET", &url(file), &body).err());
        assert_eq!((body.status, body.bytes.len()), (304, 0), "{copy}");
        assert_shown_nowhere(&body, &copy);
    }
    let head = Call::new("HEAD", &url(file))
        .header("Range", "bytes=0-1")
        .to(&gateway)
        .await
        .body()
        .await;
    assert_eq!((head.status, head.bytes.len()), (200, 0));
    assert_shown_nowhere(&head, "HEAD");
    assert_eq!(head.headers.get("content-length"), Some("10"));
    assert_eq!(delete(&gateway, &url(file)).await.problem().await, "method_not_allowed");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn erasing_a_session_erases_its_files_and_no_others() {
    let upstream = writer("a.txt", "hello").await;
    let gateway = with_files(&upstream).start().await;
    let gone = files(&gateway, json!({"message": "Hi", "session_id": "gone"})).await;
    let stays = files(&gateway, json!({"message": "Hi", "session_id": "stays"})).await;
    let folder = gateway.folder().join("artifacts");
    assert_eq!(below(&folder).len(), 2);
    assert_eq!(delete(&gateway, "/sessions/gone").await.status, 204);
    assert_eq!(below(&folder).len(), 1, "the bytes are gone by the time of the answer");
    assert_eq!(get(&gateway, &url(&gone[0])).await.problem().await, "not_found");
    let gateway = gateway.restart().await;
    assert_eq!(download(&gateway, &stays[0], &[]).await.text(), "hello");
    assert_eq!(get(&gateway, &url(&gone[0])).await.problem().await, "not_found");
}

#[tokio::test]
async fn a_run_makes_no_more_and_no_larger_files_than_it_may() {
    let large = "x".repeat(11);
    let asked = [
        ("1.txt", "1"),
        ("2.txt", large.as_str()),
        ("3.txt", "3"),
        ("4.txt", "4"),
    ];
    let upstream = Upstream::start([writes(&asked), openai::answer(&["Done"])]).await;
    let limits = "[artifacts]\nmax_size = \"10B\"\nmax_per_run = 2";
    let gateway = with_files(&upstream).toml(limits).start().await;
    let answer = post(&gateway, "/chat", json!({"message": "Hi"})).await.json().await;
    assert_eq!(answer["artifact_files"].as_array().map(Vec::len), Some(2));
    let calls = answer["tool_calls"].as_array().unwrap();
    let failed: Vec<_> = calls
        .iter()
        .filter(|call| call["ok"] == false)
        .map(|call| call["result"].to_string())
        .collect();
    assert_eq!(failed.len(), 2, "{answer}");
    assert!(
        failed
            .iter()
            .any(|told| told.contains("it has 11 B, and a file may have 10 B")),
        "{failed:?}"
    );
    assert!(failed.iter().any(|told| told.contains("2 files already")), "{failed:?}");
}

#[tokio::test]
async fn a_file_of_a_run_that_is_not_stored_has_its_time() {
    let upstream = writer("a.txt", "hello").await;
    let gateway = with_files(&upstream)
        .toml("[runs]\ndeadline = \"4s\"\nreplay_window = \"500ms\"")
        .start()
        .await;
    let made = files(&gateway, json!({"message": "Hi", "store": false})).await;
    assert_eq!(download(&gateway, &made[0], &[]).await.text(), "hello");
    crate::house::eventually("the file's time to be over", async || {
        (get(&gateway, &url(&made[0])).await.status == 404).then_some(())
    })
    .await;
    assert_eq!(below(&gateway.folder().join("artifacts")).len(), 1);
    // Whoever sweeps next takes it along: the erasing of a session, or the minute.
    assert_eq!(delete(&gateway, "/sessions/any").await.status, 204);
    assert_eq!(below(&gateway.folder().join("artifacts")), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_file_that_is_not_what_was_kept_is_not_served() {
    let upstream = writer("a.txt", "hello").await;
    let gateway = with_files(&upstream).start().await;
    let made = files(&gateway, json!({"message": "Hi"})).await;
    let path = below(&gateway.folder().join("artifacts")).remove(0);
    std::fs::write(&path, "hello, and more").unwrap();
    assert_eq!(get(&gateway, &url(&made[0])).await.problem().await, "not_found");
    std::fs::remove_file(&path).unwrap();
    let secret = gateway.folder().join("secret");
    std::fs::write(&secret, "12345").unwrap();
    std::os::unix::fs::symlink(&secret, &path).unwrap();
    assert_eq!(get(&gateway, &url(&made[0])).await.problem().await, "not_found");
}

/// A gateway whose file becomes shorter while it is read never ends the response as if it were whole.
#[tokio::test]
async fn a_file_that_becomes_shorter_aborts_its_download() {
    // More than the buffers on the way take.
    let upstream = writer("a.txt", &"x".repeat(3 << 20)).await;
    let roomy = "[providers.openai]\nmax_event = \"8MiB\"\n[runs]\nmax_output = \"16MiB\"";
    let gateway = with_files(&upstream).toml(roomy).start().await;
    let made = files(&gateway, json!({"message": "Hi"})).await;
    let path = below(&gateway.folder().join("artifacts")).remove(0);
    let connection = crate::house::Connection::open_narrow(&gateway).await;
    let mut response = connection.call(Call::get(&url(&made[0]))).await;
    assert!(response.next_bytes().await.is_some());
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10)
        .unwrap();
    let body = response.body().await;
    assert!(body.ending.is_aborted(), "{:?} after {}", body.ending, body.bytes.len());
}

#[tokio::test]
async fn what_was_told_of_survives_a_crash_and_what_was_cut_off_is_swept() {
    let upstream = writer("a.txt", "hello").await;
    let mut program = with_files(&upstream).spawn().await;
    let made = files(&program, json!({"message": "Hi", "session_id": "s"})).await;
    program.kill9().await;

    // As if it had been killed while it wrote another file, some time ago; and another, just now.
    let folder = program.folder().to_owned();
    let store = store::open(&format!("sqlite://{}/sluicegate.db", folder.display()))
        .await
        .unwrap();
    let blobs = Blobs::open(&format!("file://{}/artifacts", folder.display()), &[]).unwrap();
    let now = jiff::Timestamp::now().as_millisecond();
    let mut cut = Vec::new();
    for erase_after in [now - 1, now + 600_000] {
        let id = ArtifactId::generate();
        let record = ArtifactRecord {
            artifact: Artifact::new(id, "b".into(), "text/plain".into(), 5, "00".repeat(32)),
            principal: Principal::anonymous(),
            session_id: None::<SessionId>,
            run_id: RunId::new(),
            created_at: now,
        };
        assert!(store.announce(&record, erase_after).await.unwrap());
        blobs.put(id, Bytes::from_static(b"half!")).await.unwrap();
        cut.push(id);
    }
    store.close().await;
    drop(store);

    program.restart().await;
    assert_eq!(download(&program, &made[0], &[]).await.text(), "hello");
    for id in &cut {
        assert_eq!(
            get(&program, &format!("/artifacts/{id}")).await.problem().await,
            "not_found"
        );
    }
    crate::house::eventually("the sweep", async || {
        (below(&folder.join("artifacts")).len() == 2).then_some(())
    })
    .await;
    let left = below(&folder.join("artifacts"));
    assert!(left.iter().all(|path| !path.ends_with(cut[0].to_string())));
    // What was begun just now may still be going on, for all that the sweep knows.
    assert!(left.iter().any(|path| path.ends_with(cut[1].to_string())));
}

#[tokio::test]
async fn a_file_of_a_run_that_was_cancelled_is_told_of_with_the_run() {
    let gate = Gate::new("after the file");
    let upstream = Upstream::start([
        writes(&[("a.txt", "hello")]),
        Script::sse().role().say("So").wait(&gate).complete(),
    ])
    .await;
    let gateway = with_files(&upstream).start().await;
    let started = post(&gateway, "/runs", json!({"message": "Hi", "session_id": "s"}))
        .await
        .json()
        .await;
    gate.reached().await;
    let run = format!("/runs/{}", started["run_id"].as_str().unwrap());
    let shown = post(&gateway, &format!("{run}/cancel"), json!({})).await.json().await;
    let made = shown["response"]["artifact_files"].as_array().expect("a list").clone();
    assert_eq!(download(&gateway, &made[0], &[]).await.text(), "hello");
}
