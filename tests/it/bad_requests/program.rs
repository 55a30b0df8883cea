//! The real program under all of it: its memory, and its log.
use super::floods::memory;
use super::*;

#[tokio::test]
async fn the_program_keeps_nothing_and_tells_nothing_of_what_it_refused() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let log = "[log]\nformat = \"json\"\nfilter = \"debug\"";
    let program = Gateway::with(&upstream).toml(log).spawn().await;
    let place = program.addr();
    // Twice: what the first round left is what the program needs, what the second adds would be lost.
    every(all(), async |row| answered(place, row).await).await;
    let first = memory(&program);
    every(all(), async |row| answered(place, row).await).await;
    let second = memory(&program);
    println!("{first:.1} MiB after one round, {second:.1} MiB after two");
    assert!(
        second < first + 32.0,
        "{first:.1} MiB after one round, {second:.1} MiB after two"
    );
    let log = program.log();
    for line in log.lines() {
        assert!(
            serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()),
            "not a line of JSON: {line:?}"
        );
    }
    for secret in [CANARY, "panicked", "\"level\":\"ERROR\""] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
    nothing_happened(&upstream, &program, program.folder()).await;
}
