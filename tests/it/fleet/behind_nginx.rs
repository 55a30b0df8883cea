//! Behind the nginx.conf that is shipped.
use std::net::Ipv4Addr;

use super::*;
use crate::browser::behind_nginx::Nginx;
use crate::house::name_server::NameServer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_settings_that_are_shipped_a_death_is_noticed_by_nobody_but_its_own_runs() {
    let gate = Gate::new("a gateway is dead");
    let upstream = who_finishes_or_hangs(&gate).await;
    let Some(mut fleet) = Fleet::of(2, &upstream, &[]).await else {
        return;
    };
    let Some(nginx) = Nginx::shipped([fleet[0].addr(), fleet[1].addr()]).await else {
        return;
    };
    let ask = |message: &str| json!({"message": message, "session_id": message, "on_disconnect": "continue"});
    // Through nginx, token by token, from whichever gateway.
    let readers = async |run: &str| {
        let mut readers = Vec::new();
        for _ in 0..4 {
            let mut reader = followed(events(run), &nginx).await;
            while reader.next_event().await.seq < 2 {}
            readers.push(reader);
        }
        readers
    };
    let (own, run) = begin(&fleet[0], ask("finish")).await;
    let reading = readers(&run).await;
    fleet.gateways[1].kill9().await;
    let mut cut = 0;
    let mut resumed = Vec::new();
    gate.open();
    for reader in reading {
        let seen = reader.transcript().await;
        match seen.ended {
            Ended::Aborted => {
                cut += 1;
                let after = after(&run, seen.events.last().expect("an event").seq);
                resumed.push(after.to(&nginx).await.expect(200).await.transcript().await);
            }
            Ended::Eof => resumed.push(seen),
        }
    }
    assert!((1..4).contains(&cut), "{cut} of the readers were at the other gateway");
    for transcript in resumed {
        assert_eq!(transcript.done()["response"]["content"], "one two three");
    }
    own.transcript().await.done();
    fleet.gateways[1].restart().await;
    // The run's own gateway.
    let (own, run) = begin(&fleet[0], ask("hang")).await;
    fleet.gateways[0].kill9().await;
    drop(own);
    let told = eventually("its end", async || {
        let call = after(&run, 2).to(&nginx).await;
        (call.status == 200).then_some(call)
    });
    let told = told.await.transcript().await;
    assert_eq!((told.codes(), told.terminal().seq), (vec!["interrupted".to_owned()], 3));
    fleet.gateways[0].restart().await;
    // What a gateway that died had been sent is not sent to another one. (An nginx that has seen no death yet uses both.)
    let Some(nginx) = Nginx::shipped([fleet[0].addr(), fleet[1].addr()]).await else {
        return;
    };
    let calls = upstream.calls();
    let (place, hang) = (nginx.addr(), ["t", "u", "v", "w"]);
    let asked: Vec<_> = hang
        .map(|session| tokio::spawn(async move { post(&place, "/chat", hi(session)).await.status }))
        .into();
    eventually("the model to be asked", async || {
        (upstream.calls() == calls + 4).then_some(())
    })
    .await;
    fleet.gateways[0].kill9().await;
    eventually("a refusal", async || {
        asked.iter().any(|asked| asked.is_finished()).then_some(())
    })
    .await;
    assert_eq!(upstream.calls(), calls + 4);
    fleet.gateways[1].kill9().await;
    for status in asked {
        assert_eq!(status.await.unwrap(), 502);
    }
    assert_eq!(upstream.calls(), calls + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_a_new_address_is_found_without_a_restart_of_nginx() {
    let upstream = Upstream::always(Script::sse().role().say("Hello").complete()).await;
    let [old, new] = [2, 3].map(|host| Ipv4Addr::new(127, 0, 0, host));
    let port = reserved_port();
    let port_number = port.local_addr().expect("a bound socket").port();
    let gateway = async |address: Ipv4Addr| {
        let listen = format!("[server]\nlisten = \"{address}:{port_number}\"");
        Gateway::with(&upstream).toml(&listen).start().await
    };
    let names = NameServer::start(&[old]).await;
    let Some(nginx) = Nginx::shipped_resolving(names.addr(), port_number).await else {
        return;
    };
    let ask = async || post(&nginx, "/chat", json!({"message": "Hi"})).await.status;
    let first = gateway(old).await;
    assert_eq!(ask().await, 200);
    // Both gateways get new addresses at once: nothing listens at the old one any more.
    first.stop().await;
    let _second = gateway(new).await;
    names.set(&[new]);
    eventually("the new address to be used", async || {
        (ask().await == 200).then_some(())
    })
    .await;
    // From then on no request meets the old address.
    for _ in 0..8 {
        assert_eq!(ask().await, 200);
    }
}
