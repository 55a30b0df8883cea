//! Four `EventSource`s of a page in a browser, through the nginx that is shipped.
use super::*;
use crate::browser::{NODE, behind_nginx::Nginx, chromium, node, scripts};

/// What the page read of a run during which one of two gateways is killed: the run's own, or the other one.
async fn told(victim: usize) -> Option<(String, Vec<Value>)> {
    let scripts = scripts().filter(|_| chromium())?;
    let gate = Gate::new("a gateway is dead");
    let upstream = held(&gate).await;
    let bell = Upstream::always(Script::status(200, &[], "{}")).await;
    let mut fleet = Fleet::of(2, &upstream, &[]).await?;
    let nginx = Nginx::shipped([fleet[0].addr(), fleet[1].addr()]).await?;
    let body = json!({"message": "Hi", "on_disconnect": "continue"});
    let (own, run) = begin(&fleet[0], body).await;
    let order = json!({
        "base": format!("http://{}", nginx.addr()), "run": run, "bell": format!("http://{}/", bell.addr()),
    });
    let order = order.to_string();
    let death = async {
        let rung = async {
            while bell.calls() == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await; // a browser takes its time to start
            }
        };
        within(NODE, "the page to have read two tokens four times", rung).await;
        fleet.gateways[victim].kill9().await;
        gate.open();
    };
    let (report, ()) = tokio::join!(node(scripts, "follow.mjs", &order), death);
    assert_eq!(upstream.calls(), 1);
    drop(own);
    Some((run, report["sources"].as_array().expect("sources").clone()))
}

fn check(run: &str, sources: &[Value], last: &str) {
    assert_eq!(sources.len(), 4);
    for source in sources {
        let ids = source["ids"].as_array().expect("ids");
        let expected: Vec<Value> = (0..ids.len()).map(|seq| json!(format!("{run}:{seq}"))).collect();
        assert_eq!(*ids, expected, "{source}");
        assert_eq!(
            source["names"].as_array().and_then(|names| names.last()),
            Some(&json!(last)),
            "{source}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_misses_nothing_when_a_gateway_dies_that_only_read_along() {
    let Some((run, sources)) = told(1).await else { return };
    check(&run, &sources, "done");
    let again = |source: &&Value| source["opened"].as_u64() > Some(1);
    assert!(
        sources.iter().any(|source| again(&source)),
        "nobody was at the gateway that died: {sources:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_told_when_the_runs_own_gateway_dies() {
    let Some((run, sources)) = told(0).await else { return };
    check(&run, &sources, "error");
    for source in sources {
        assert!(
            source["last"]
                .as_str()
                .is_some_and(|last| last.contains("\"interrupted\"")),
            "{source}"
        );
    }
}
