//! `sluicegate backup`: a copy of the store while a gateway writes to it, and a gateway that goes on with the copy.
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use futures_util::future::join_all;
use serde_json::json;

use super::house::*;

const SESSIONS: [&str; 3] = ["a", "b", "c"];

async fn backup(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    let command = command.arg("backup").args(arguments).current_dir(folder).env_clear();
    command.output().await.expect("the program")
}

async fn gateway(upstream: &Upstream, more: &[(&str, &str)]) -> Process {
    let base_url = upstream.base_url();
    let usual = [
        ("OPENAI_API_KEY", "test-key"),
        ("OPENAI_BASE_URL", base_url.as_str()),
        ("SLUICEGATE_MODEL", "openai/test-model"),
    ];
    let all: Vec<_> = usual.iter().chain(more).copied().collect();
    Process::start(&all, &[]).await
}

async fn ask(program: &Process, session: &str) {
    let body = json!({"message": "x".repeat(2_000), "session_id": session});
    post(program, "/chat", body).await.expect(200).await.json().await;
}

async fn count(program: &Process, session: &str) -> usize {
    let page = get(program, &format!("/sessions/{session}/messages?limit=200")).await;
    page.expect(200).await.json().await["messages"]
        .as_array()
        .unwrap()
        .len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_while_turns_are_written_has_whole_turns_and_is_gone_on_with() {
    let upstream = Upstream::always(openai::answer(&["Fine."])).await;
    let program = gateway(&upstream, &[]).await;
    let (over, written) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 3]);
    let write = join_all(SESSIONS.iter().zip(&written).map(async |(session, written)| {
        while !over.load(SeqCst) && written.load(SeqCst) < 90 {
            ask(&program, session).await;
            written.fetch_add(1, SeqCst);
        }
    }));
    let copy = async {
        let mut copies = Vec::new();
        for name in ["one.db", "two.db"] {
            eventually("some turns", async || {
                written
                    .iter()
                    .all(|written| written.load(SeqCst) > copies.len() * 5 + 3)
                    .then_some(())
            })
            .await;
            let acknowledged: Vec<_> = written.iter().map(|written| written.load(SeqCst)).collect();
            let made = backup(program.folder(), &[name]).await;
            assert!(made.status.success(), "{made:?}");
            let whole = program.folder().canonicalize().unwrap().join(name);
            let told = String::from_utf8(made.stdout).unwrap();
            assert!(told.contains(&*whole.to_string_lossy()), "{told}");
            copies.push((whole, acknowledged));
        }
        over.store(true, SeqCst);
        copies
    };
    let (copies, _) = tokio::join!(copy, write);
    get(&program, "/readyz").await.expect(200).await;
    for (file, acknowledged) in copies {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let url = format!("sqlite://{}", file.display());
        let restored = gateway(&upstream, &[("SLUICEGATE__STORE__URL", &url)]).await;
        for (session, turns) in SESSIONS.iter().zip(acknowledged) {
            let messages = count(&restored, session).await;
            assert!(
                messages % 2 == 0 && messages >= 2 * turns,
                "{messages} of {turns} turns"
            );
            ask(&restored, session).await;
            assert_eq!(count(&restored, session).await, messages + 2);
        }
    }
}

#[tokio::test]
async fn a_backup_writes_over_nothing_and_says_where_it_could_not() {
    let folder = tempfile::tempdir().unwrap();
    let refused = async |arguments: &[&str], words: &[&str]| {
        let made = backup(folder.path(), arguments).await;
        assert!(!made.status.success(), "{made:?}");
        let told = String::from_utf8(made.stderr).unwrap();
        let whole = folder.path().canonicalize().unwrap();
        for word in words {
            let word = word.replace("FOLDER", &whole.to_string_lossy());
            assert!(told.contains(&word), "{word:?} is not in {told:?}");
        }
    };
    refused(&["copy.db"], &["there is no store at FOLDER/data/sluicegate.db"]).await;
    assert!(!folder.path().join("copy.db").exists());
    let upstream = Upstream::always(openai::answer(&["Fine."])).await;
    let url = format!("sqlite://{}/data/sluicegate.db", folder.path().display());
    let program = gateway(&upstream, &[("SLUICEGATE__STORE__URL", &url)]).await;
    ask(&program, "a").await;
    std::fs::write(folder.path().join("copy.db"), "mine").unwrap();
    refused(&["copy.db"], &["FOLDER/copy.db is there already"]).await;
    assert_eq!(std::fs::read(folder.path().join("copy.db")).unwrap(), b"mine");
    refused(&["nowhere/copy.db"], &["FOLDER/nowhere/copy.db cannot be written"]).await;
    // Nothing is left of what did not come about.
    let mut names: Vec<_> = folder
        .path()
        .read_dir()
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["copy.db", "data"]);
    let elsewhere = "--config=memory.toml";
    std::fs::write(folder.path().join("memory.toml"), "[store]\nurl = \"memory:\"").unwrap();
    refused(&["new.db", elsewhere], &["sqlite://PATH", "pg_dump"]).await;
}
