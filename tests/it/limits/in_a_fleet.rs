//! Gateways that count together, through Redis.
use std::sync::Arc;

use futures_util::future::join_all;
use sluicegate::chat::{Principal, RunId, SessionId};
use sluicegate::store::{
    open_relay,
    tally::{Counted, Counting, Place as Seat, Tally},
};

use super::*;
use crate::house::redis::{Redis, shared};
use crate::stores::Database;

/// A name that no other story counts under.
fn somebody() -> String {
    format!("web-{}", RunId::new())
}

/// Two gateways that count together at this Redis, for callers with this key.
async fn two(redis: &str, upstream: &impl Place, key: &Key) -> [Gateway; 2] {
    let probes = Probes::new();
    let start = || {
        let recipe = Gateway::with(upstream).toml(&key.toml).toml(&probes.toml());
        recipe.toml(&format!("[run_log]\nurl = \"{redis}\"")).start()
    };
    let gateways = [start().await, start().await];
    probes.count_together(&gateways[0], &gateways[1]).await;
    gateways
}

/// Callers that may ask once a minute: where gateways count together, once at one of them.
struct Probes(Vec<Key>);

impl Probes {
    fn new() -> Self {
        Self(
            (0..40)
                .map(|_| Key::of(&somebody(), "requests_per_minute = 1"))
                .collect(),
        )
    }

    fn toml(&self) -> String {
        self.0.iter().map(|key| &*key.toml).collect()
    }

    /// Waits until they do: a gateway whose Redis is slow to answer counts by itself for a while.
    async fn count_together(&self, one: &impl Place, other: &impl Place) {
        let mut probes = self.0.iter();
        eventually("gateways to count together", async || {
            let key = probes.next().expect("as many as it takes");
            key.get(one, "/agents").await;
            let together = key.get(other, "/agents").await.status == 429;
            if !together {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            together.then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn gateways_admit_together_what_one_would_within_a_tenth() {
    let Some(redis) = shared() else { return };
    let web = Key::of(&somebody(), "requests_per_minute = 30");
    let gateways = two(&redis, &closed_port(), &web).await;
    let mut admitted = 0;
    for at in 0..90 {
        let answer = web.get(&gateways[at % 2], "/agents").await;
        let (limit, left, _) = standing(&answer);
        if answer.status == 200 {
            admitted += 1;
            assert!(left <= limit - admitted, "{left} left after {admitted}");
        } else {
            refused(answer, 429, "rate_limited").await;
        }
    }
    assert!((27..=33).contains(&admitted), "{admitted}");
}

#[tokio::test]
async fn places_are_counted_together_and_free_when_the_end_was_read() {
    let Some(redis) = shared() else { return };
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let web = Key::of(&somebody(), "concurrent_runs = 2");
    let [one, other] = two(&redis, &upstream, &web).await;
    let (first, _) = web.begin(&one, hi()).await;
    let (second, run) = web.begin(&other, hi()).await;
    for gateway in [&one, &other] {
        refused(web.post(gateway, "/chat", hi()).await, 429, "too_many_runs").await;
    }
    web.post(&other, &format!("/runs/{run}/cancel"), json!({}))
        .await
        .expect(200)
        .await;
    assert_eq!(second.transcript().await.codes(), ["cancelled"]);
    let (third, _) = web.begin(&one, hi()).await;
    refused(web.post(&other, "/chat", hi()).await, 429, "too_many_runs").await;
    gate.open();
    for stream in [first, third] {
        assert_eq!(stream.transcript().await.text(), "Hello");
    }
    for gateway in [&one, &other, &one, &other] {
        web.post(gateway, "/chat", hi()).await.expect(200).await.json().await;
    }
    // What could not begin has no place, or has it for a moment only.
    for _ in 0..4 {
        let ask = || web.post(&one, "/chat", json!({"message": "Hi", "session_id": "s"}));
        for answer in join_all([ask(), ask()]).await {
            assert!(matches!(answer.status, 200 | 409 | 429), "{}", answer.status);
            answer.body().await;
        }
    }
    eventually("both places", async || {
        let both = join_all([web.post(&one, "/chat", hi()), web.post(&other, "/chat", hi())]).await;
        both.iter().all(|answer| answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_may_have_one_run_may_interrupt_it_from_another_gateway() {
    let (Some(redis), Some(database)) = (shared(), Database::make().await) else {
        return;
    };
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let web = Key::of(&somebody(), "concurrent_runs = 1");
    let probes = Probes::new();
    let start = || {
        let recipe = Gateway::with(&upstream).toml(&web.toml).toml(&probes.toml());
        let recipe = recipe.toml(&format!("[run_log]\nurl = \"{redis}\""));
        recipe
            .toml(&format!("[store]\nurl = \"{}\"", database.url("lease=7s")))
            .start()
    };
    let (one, other) = (start().await, start().await);
    probes.count_together(&one, &other).await;
    let (first, _) = web.begin(&one, json!({"message": "Hi", "session_id": "s"})).await;
    let ask = |session: &str, on_busy: &str| json!({"message": "Hi", "session_id": session, "on_busy": on_busy});
    refused(web.post(&other, "/chat", ask("s", "queue")).await, 429, "too_many_runs").await;
    refused(
        web.post(&other, "/chat", ask("else", "interrupt")).await,
        429,
        "too_many_runs",
    )
    .await;
    let (second, _) = web.begin(&other, ask("s", "interrupt")).await;
    assert_eq!(first.transcript().await.codes(), ["cancelled"]);
    gate.open();
    assert_eq!(second.transcript().await.text(), "Hello");
    web.post(&one, "/chat", ask("s", "reject"))
        .await
        .expect(200)
        .await
        .json()
        .await;
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn the_places_of_a_gateway_that_died_come_free() {
    let Some(redis) = shared() else { return };
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let web = Key::of(&somebody(), "concurrent_runs = 2");
    let log = format!("[run_log]\nurl = \"{redis}\"");
    let probes = Probes::new();
    let recipe = || Gateway::with(&upstream).toml(&web.toml).toml(&probes.toml()).toml(&log);
    let (mut mortal, other) = (recipe().spawn().await, recipe().start().await);
    probes.count_together(&mortal, &other).await;
    let (_gone, _) = web.begin(&mortal, hi()).await;
    let (stays, _) = web.begin(&other, hi()).await;
    refused(web.post(&other, "/chat", hi()).await, 429, "too_many_runs").await;
    mortal.kill9().await;
    let died = Instant::now();
    let free = async {
        loop {
            let answer = web.post(&other, "/chat/sse", hi()).await;
            match answer.status {
                200 => return answer,
                _ => drop(refused(answer, 429, "too_many_runs").await),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let third = within(Duration::from_secs(20), "the dead gateway's place", free).await;
    let took = died.elapsed();
    assert!(took <= Duration::from_secs(17), "{took:?}");
    // The other one's place was kept all the time.
    refused(web.post(&other, "/chat", hi()).await, 429, "too_many_runs").await;
    gate.open();
    for stream in [stays, third] {
        assert_eq!(stream.transcript().await.text(), "Hello");
    }
}

/// How many of ten are admitted by each of two gateways, and how long the usual one of the twenty took.
async fn ten_each(gateways: &[Gateway; 2], key: &Key) -> ([usize; 2], Duration) {
    let (mut admitted, mut took) = ([0, 0], Vec::new());
    for _ in 0..10 {
        for (gateway, count) in gateways.iter().zip(&mut admitted) {
            let asked = Instant::now();
            let answer = key.get(gateway, "/agents").await;
            took.push(asked.elapsed());
            *count += usize::from(answer.status == 200);
        }
    }
    took.sort_unstable();
    (admitted, took[10])
}

/// Waits until two gateways admit five together, a key at a time.
async fn together_again(gateways: &[Gateway; 2], keys: &[Key]) {
    let mut all = Vec::new();
    for key in keys {
        let (admitted, _) = ten_each(gateways, key).await;
        if admitted.iter().sum::<usize>() == 5 {
            return;
        }
        all.push(admitted);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    panic!("{all:?}");
}

#[tokio::test]
async fn while_redis_is_away_each_gateway_counts_by_itself() {
    let Some(mut redis) = Redis::start().await else { return };
    let fresh = |_| Key::of(&somebody(), "requests_per_minute = 5\nconcurrent_runs = 1");
    let keys: Vec<Key> = (0..19).map(fresh).collect();
    let all = Key {
        key: String::new(),
        toml: keys.iter().map(|key| &*key.toml).collect(),
    };
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let gateways = two(&redis.url(), &upstream, &all).await;
    together_again(&gateways, &keys[3..8]).await;
    redis.pause().await;
    let (admitted, took) = ten_each(&gateways, &keys[1]).await;
    assert_eq!(admitted, [5, 5]);
    assert!(took < Duration::from_millis(50), "each of them waited: {took:?}");
    let (stream, _) = keys[2].begin(&gateways[0], hi()).await;
    assert_eq!(stream.transcript().await.text(), "a", "runs go on");
    redis.resume().await;
    together_again(&gateways, &keys[8..13]).await;
    redis.kill().await;
    let (admitted, _) = ten_each(&gateways, &keys[2]).await;
    assert_eq!(admitted, [4, 5]);
    redis.restart().await;
    together_again(&gateways, &keys[13..]).await;
}

/// The tally itself, with a window that a story can wait for.
#[tokio::test]
async fn a_tally_counts_a_window_and_keeps_places_for_their_time() {
    let Some(redis) = shared() else { return };
    let (_, tally): (_, Arc<dyn Tally>) = open_relay(&redis).unwrap().unwrap();
    assert!(
        tally
            .count(&Principal::named("x"), 1, Duration::from_secs(1))
            .await
            .is_err(),
        "not ready"
    );
    tally.ready().await.unwrap();
    let (who, window) = (Principal::named(&somebody()), Duration::from_secs(2));
    let begun = Instant::now();
    for left in [2, 1, 0] {
        match tally.count(&who, 3, window).await.unwrap() {
            Counted::In { remaining, reset } => assert!(remaining == left && reset <= window),
            out => panic!("{out:?}"),
        }
    }
    for _ in 0..5 {
        let out = tally.count(&who, 3, window).await.unwrap();
        let Counted::Out(wait) = out else { panic!("{out:?}") };
        assert!(wait <= window && begun.elapsed() + wait >= window, "{wait:?}");
    }
    assert!(matches!(
        tally.count(&who, 4, window).await.unwrap(),
        Counted::In { remaining: 0, .. }
    ));
    tokio::time::sleep_until((begun + window * 2).into()).await;
    assert!(matches!(
        tally.count(&who, 3, window).await.unwrap(),
        Counted::In { remaining: 2, .. }
    ));

    let keep = Duration::from_secs(2);
    let seat = |session: &str| Seat {
        principal: who.clone(),
        run: RunId::new(),
        session: Some(session.parse::<SessionId>().unwrap()),
    };
    let (first, second) = (seat("a"), seat("b"));
    assert!(tally.enter(&first, 2, Counting::All, keep).await.unwrap());
    assert!(tally.enter(&second, 2, Counting::All, keep).await.unwrap());
    for (session, counting) in [
        ("c", Counting::All),
        ("a", Counting::All),
        ("c", Counting::OtherSessions),
    ] {
        assert!(
            !tally.enter(&seat(session), 2, counting, keep).await.unwrap(),
            "{session}"
        );
    }
    let instead = seat("a");
    assert!(tally.enter(&instead, 2, Counting::OtherSessions, keep).await.unwrap());
    tally.leave(&[first, instead]).await.unwrap();
    let third = seat("c");
    assert!(tally.enter(&third, 2, Counting::All, keep).await.unwrap());
    // One is kept, the other one not.
    for _ in 0..6 {
        tally.stay(std::slice::from_ref(&second), keep).await.unwrap();
        tokio::time::sleep(keep / 4).await;
    }
    assert!(tally.enter(&seat("d"), 2, Counting::All, keep).await.unwrap());
    assert!(!tally.enter(&seat("e"), 2, Counting::All, keep).await.unwrap());
}

/// What was written by a clock that has been set back since is of a time that comes only in an hour.
#[cfg(feature = "redis")]
#[tokio::test]
async fn a_clock_that_is_set_back_keeps_nobody_out() {
    let Some(redis) = shared() else { return };
    let (_, tally): (_, Arc<dyn Tally>) = open_relay(&redis).unwrap().unwrap();
    tally.ready().await.unwrap();
    let (who, minute, keep) = (
        Principal::named(&somebody()),
        Duration::from_secs(60),
        Duration::from_secs(15),
    );
    let whole = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, who.as_str().as_bytes());
    let print: String = whole.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let client = ::redis::Client::open(redis).unwrap();
    let mut server = client.get_multiplexed_async_connection().await.unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let later = now + Duration::from_secs(3600);
    for command in [
        ::redis::cmd("RPUSH")
            .arg(format!("sluicegate:asked:{print}"))
            .arg(later.as_micros().to_string())
            .arg(later.as_micros().to_string()),
        ::redis::cmd("ZADD")
            .arg(format!("sluicegate:places:{print}"))
            .arg((later + keep).as_millis().to_string())
            .arg("a gateway's that died/"),
    ] {
        command.exec_async(&mut server).await.unwrap();
    }
    for left in [1, 0] {
        let counted = tally.count(&who, 2, minute).await.unwrap();
        assert!(
            matches!(counted, Counted::In { remaining, reset } if remaining == left && reset <= minute),
            "{counted:?}"
        );
    }
    assert!(matches!(tally.count(&who, 2, minute).await.unwrap(), Counted::Out(_)));
    let seat = || Seat {
        principal: who.clone(),
        run: RunId::new(),
        session: None,
    };
    assert!(tally.enter(&seat(), 1, Counting::All, keep).await.unwrap());
    assert!(!tally.enter(&seat(), 1, Counting::All, keep).await.unwrap());
}
