//! Many readers who come to another gateway for one long run.
use super::*;

const READERS: usize = 300;
/// Tokens, and their bytes.
const TOKENS: (usize, usize) = (128, 4 << 10);

/// The memory that a process has, in KiB.
fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.expect("its memory").trim().trim_end_matches(" kB");
    number.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_read_a_long_run_elsewhere_at_the_price_of_one() {
    let gate = Gate::new("all of them");
    let token = "x".repeat(TOKENS.1);
    let script = (0..TOKENS.0).fold(Script::sse().role(), |script, _| script.say(&token));
    let upstream = Upstream::always(script.wait(&gate).complete()).await;
    let Some(redis) = Redis::start().await else { return };
    let Some(fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[]).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    let started = Call::post("/runs").json(&json!({"message": "Hi"})).to(a).await;
    let run = started.expect(202).await.header("x-run-id").to_owned();
    gate.reached().await;
    eventually("all of it to be mirrored", async || {
        let seq = u64::try_from(TOKENS.0).expect("a number");
        (after(&run, seq).to(b).await.status == 200).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(6)).await; // nobody reads there, and what was read is forgotten
    let before = resident(b);
    let readers = join_all((0..READERS).map(|_| events(&run).to(b))).await;
    assert!(readers.iter().all(|reader| reader.status == 200), "none is turned away");
    let grown = resident(b).saturating_sub(before);
    gate.open();
    let lengths = join_all(readers.into_iter().map(async |reader| {
        let body = reader.patience(Duration::from_secs(60)).body().await;
        (body.ending, body.bytes.len())
    }));
    let lengths = lengths.await;
    assert!(lengths.iter().all(|read| *read == (Ending::Complete, lengths[0].1)));
    assert!(lengths[0].1 > TOKENS.0 * TOKENS.1);
    let ended = resident(b).saturating_sub(before);
    eprintln!(
        "{READERS} readers of {} KiB: {grown} KiB more, {ended} KiB at its end",
        TOKENS.0 * TOKENS.1 / 1024
    );
    assert!(grown < 64 << 10, "{grown} KiB");
}
