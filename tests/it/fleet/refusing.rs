//! Redis that answers and takes nothing, is another one than before, or is not there when gateways
//! start.
use sluicegate::store::relay::START;
use tokio::net::TcpListener;

use super::*;

async fn run_log(gateway: &impl Place) -> Value {
    get(gateway, "/readyz").await.expect(200).await.json().await["run_log"].clone()
}

/// A gateway says that the relay takes nothing, and why, in one line; what runs at the other one is
/// not shown as empty.
async fn takes_nothing(fleet: &Fleet, advice: &str) {
    let [a, b] = &fleet[..] else { unreachable!() };
    for place in [a, b] {
        eventually("the relay to be known as not writable", async || {
            (run_log(place).await == "not_writable").then_some(())
        })
        .await;
    }
    let (own, run) = begin(a, json!({"message": "hold"})).await;
    let refused = events(&run).to(b).await.expect(503).await;
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.problem().await, "store_unavailable");
    let log = a.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("the relay (Redis)")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("WARN") && lines[0].contains(advice), "{}", lines[0]);
    own.hang_up();
}

/// A run of one is followed at the other.
async fn takes_all_again(fleet: &Fleet) {
    let [a, b] = &fleet[..] else { unreachable!() };
    for place in [a, b] {
        eventually("the relay to be known as well", async || {
            (run_log(place).await == "ok").then_some(())
        })
        .await;
    }
    let (_own, run) = begin(a, json!({"message": "hold"})).await;
    let mut there = followed(events(&run), b).await;
    while there.next_event().await.seq < 2 {}
}

async fn holds(gate: &Gate) -> Upstream {
    held(gate).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_not_a_relay() {
    let gate = Gate::new("never");
    let upstream = holds(&gate).await;
    let Some(redis) = Redis::start().await else { return };
    let Some(fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[]).await else {
        return;
    };
    assert_eq!(redis.command(&["REPLICAOF", "127.0.0.1", "1"]).await, "+OK");
    takes_nothing(&fleet, "run_log.url has to name the primary").await;
    assert_eq!(redis.command(&["REPLICAOF", "NO", "ONE"]).await, "+OK");
    takes_all_again(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_a_server_without_memory() {
    let gate = Gate::new("never");
    let upstream = holds(&gate).await;
    let Some(redis) = Redis::start().await else { return };
    let Some(fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[]).await else {
        return;
    };
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await, "+OK");
    takes_nothing(&fleet, "raise its maxmemory").await;
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await, "+OK");
    takes_all_again(&fleet).await;
}

/// An address that leads new connections to whichever server is the primary, and leaves old ones
/// where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_the_new_primary_is_found_behind_the_same_address() {
    let gate = Gate::new("never");
    let upstream = holds(&gate).await;
    let (Some(first), Some(second)) = (Redis::start().await, Redis::start().await) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (primary, target) = tokio::sync::watch::channel(first.addr());
    let _forwarder = Task::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let at = *target.borrow();
            connections.spawn(async move {
                let mut server = tokio::net::TcpStream::connect(at).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let Some(fleet) = Fleet::on(&format!("redis://{address}"), LEASE, 2, &upstream, &[]).await else {
        return;
    };
    takes_all_again(&fleet).await;
    primary.send_replace(second.addr());
    assert_eq!(first.command(&["REPLICAOF", "127.0.0.1", "1"]).await, "+OK");
    eventually("a run to be mirrored to the new primary", async || {
        let (_own, run) = begin(&fleet[0], json!({"message": "hold"})).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let there = second.command(&["EXISTS", &format!("sluicegate:log:{run}")]).await;
        (there == ":1").then_some(())
    })
    .await;
    takes_all_again(&fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_taken_back_when_the_server_is_another_one() {
    let Some(mut redis) = Redis::start().await else { return };
    // Its clock is far ahead of the next one's.
    let ahead = ["XADD", "sluicegate:stop", "99999999999999-0", "run", "none"];
    assert!(redis.command(&ahead).await.starts_with('$'));
    let (relay, _) = sluicegate::store::open_relay(&redis.url())
        .expect("an address")
        .expect("a relay");
    let place = relay.now().await.expect("a place");
    assert_eq!(place, "99999999999999-0");
    let patience = Duration::from_millis(50);
    assert!(!relay.hear(&[], &place, patience).await.expect("nothing").renewed);
    redis.kill().await;
    assert!(relay.hear(&[], &place, patience).await.is_err());
    redis.restart().await;
    assert!(relay.hear(&[], &place, patience).await.expect("an answer").renewed);
    let run = "01a1fe71-de05-7081-80c5-75641c8afc86".parse().expect("an id");
    eventually("a call to be taken", async || relay.stop(run).await.ok()).await;
    let heard = relay.hear(&[], &START.to_owned(), patience).await.expect("a call");
    assert_eq!(heard.stops.len(), 1);
    assert_eq!(heard.stops[0].0, run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_not_there_at_the_start_is_named_and_what_that_means() {
    let upstream = Upstream::always(openai::answer(&["one"])).await;
    let port = reserved_port();
    let at = port.local_addr().expect("an address");
    let Some(fleet) = Fleet::on(&format!("redis://ada:canary@{at}"), LEASE, 1, &upstream, &[]).await else {
        return;
    };
    let gateway = &fleet[0];
    gateway.logged("the relay (Redis) cannot be used").await;
    let log = gateway.log();
    for words in [
        "other gateways cannot follow them",
        "limits are counted by each gateway for itself until Redis can be used",
        &format!("Redis at redis://ada:***@{at}"),
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(!log.contains("canary"), "{log}");
    post(gateway, "/chat", hi("s")).await.expect(200).await;
    assert_eq!(run_log(gateway).await, "unreachable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_elsewhere_is_told_of_an_end_in_time_without_it() {
    let gate = Gate::new("never");
    let upstream = holds(&gate).await;
    let Some(redis) = Redis::start().await else { return };
    let settings = [("RUNS__DRAIN", "1s")];
    let Some(mut fleet) = Fleet::on(&redis.url(), "", 3, &upstream, &settings).await else {
        return;
    };
    let mut readers = Vec::new();
    for owner in 0..2 {
        let (own, run) = begin(&fleet[owner], json!({"message": "hold", "on_disconnect": "continue"})).await;
        let mut there = followed(events(&run), &fleet[2])
            .await
            .patience(Duration::from_secs(15));
        while there.next_event().await.seq < 2 {}
        readers.push((own, there));
    }
    redis.pause().await;
    fleet.gateways[0].kill9().await;
    fleet[1].terminate().await;
    let began = Instant::now();
    let mut codes = Vec::new();
    for (_own, there) in readers {
        codes.push(there.transcript().await.codes());
    }
    assert_eq!(codes, [["interrupted"], ["shutting_down"]]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
