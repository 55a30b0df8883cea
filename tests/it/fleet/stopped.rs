//! Cancelling, erasing and being there, from elsewhere.
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_cancelled_and_its_session_erased_from_anywhere() {
    let gate = Gate::new("never");
    let upstream = held(&gate).await;
    let Some(fleet) = Fleet::of(2, &upstream, &[]).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    let (own, run) = begin(a, hi("s")).await;
    let there = followed(events(&run), b).await;
    cancel(b, &run).await.expect(200).await;
    eventually("the run to be cancelled", async || {
        (glance(b, &run).await["status"] == "cancelled").then_some(())
    })
    .await;
    upstream.closed().await;
    let (own, there) = (own.transcript().await, there.transcript().await);
    assert_eq!(
        (own.codes(), there.codes()),
        (vec!["cancelled".to_owned()], vec!["cancelled".to_owned()])
    );
    assert_eq!(own.last_id(), there.last_id());
    assert_eq!(said(b, "s").await, ["Hi", "one two "]);
    assert_eq!(cancel(b, &run).await.status, 200, "twice");
    // Usually it is over when that is answered.
    prompt(Duration::from_secs(1), async || {
        let (_own, run) = begin(a, json!({"message": "Hi"})).await;
        let began = Instant::now();
        let answer = cancel(b, &run).await.expect(200).await.json().await;
        let took = began.elapsed();
        upstream.closed().await;
        if answer["status"] == "cancelled" {
            took
        } else {
            Duration::MAX
        }
    })
    .await;
    // The session goes with the run that has it.
    let (own, run) = begin(a, hi("s")).await;
    let there = followed(events(&run), b).await;
    assert_eq!(delete(b, "/sessions/s").await.status, 204);
    upstream.closed().await;
    assert_eq!(own.transcript().await.codes(), ["cancelled"]);
    assert_eq!(there.transcript().await.codes(), ["cancelled"]);
    for place in [a, b] {
        assert_eq!(get(place, "/sessions/s").await.status, 404);
    }
    assert_eq!(delete(b, "/sessions/s").await.status, 204, "twice");
    eventually("the run to be forgotten", async || {
        let gone = async |place| get(place, &format!("/runs/{run}")).await.status == 404;
        (gone(b).await).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_elsewhere_is_a_reader() {
    let gate = Gate::new("never");
    let upstream = held(&gate).await;
    let settings = [("RUNS__DETACH_GRACE", "300ms")];
    let Some(fleet) = Fleet::of(2, &upstream, &settings).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    let story = async |policy: &str| {
        let body = json!({"message": "Hi", "session_id": policy, "on_disconnect": policy});
        let (own, run) = begin(a, body).await;
        let mut there = followed(events(&run), b).await;
        assert_eq!(there.next_event().await.event, "start");
        // They say so a few times per second; what they say holds for some seconds.
        tokio::time::sleep(Duration::from_secs(2)).await;
        own.reset();
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(
                glance(a, &run).await["status"],
                "running",
                "{policy}: it is read elsewhere"
            );
        }
        there.reset();
        let left = Instant::now();
        eventually(format!("{policy}: its end"), async || {
            (glance(a, &run).await["status"] == "cancelled").then_some(())
        })
        .await;
        assert!(
            left.elapsed() < Duration::from_secs(15),
            "{policy}: {:?}",
            left.elapsed()
        );
    };
    tokio::join!(story("grace"), story("cancel"));
}
