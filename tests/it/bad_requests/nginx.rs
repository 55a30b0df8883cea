//! The same requests through the nginx that is shipped: what it lets through is answered as without it.
use super::*;
use crate::browser::behind_nginx::Nginx;

/// What nginx answers itself, or puts in order: by how the rows' ids begin, with which statuses (none: it does not
/// answer, or without a status), and why.
const ITS_OWN: &[(&str, &[u16], &str)] = &[
    ("B003 TRACE", &[405], "nginx traces for nobody"),
    ("B004", &[400, 405], "nginx is no forward proxy"),
    ("B009 /chat%00", &[400], "nginx decodes paths"),
    ("B009 *", &[400], "nginx knows no such path"),
    ("B011 HTTP/1.0", &[200], "the gateway hears HTTP/1.1"),
    ("B012 HTTP/0.9", &[], "answered as such, without a head"),
    ("B013", &[400], "nginx looks at the host first"),
    ("B017 \"", &[400, 501], "nginx knows one coding"),
    ("B018 a chunk of", &[400], "nginx reads chunks"),
    ("B018 an extension", &[], "nginx waits for the end of the line"),
    (
        "B018 a chunk that ends in a bare LF",
        &[200],
        "nginx takes it for a line's end, and writes a good one",
    ),
    (
        "B019 a name that is no token",
        &[400],
        "nginx drops the line; what is left has no body",
    ),
    ("B020", &[431], "by the gateway; nginx keeps its own connection"),
    ("B021", &[400], "8 KiB a line"),
    ("B022", &[414], "8 KiB a line"),
    ("B025", &[200], "nginx answers expectations"),
    ("B026", &[], "nginx hangs up on who hangs up"),
    ("B036 of 8 KiB", &[400], "8 KiB a line"),
    ("B036 NUL", &[400], "nginx takes none"),
    ("B038 two Authorizations", &[400], "nginx takes one"),
    (
        "B042 GET /runs/01920000-0000-7000-8000-000000000001%00",
        &[400],
        "nginx decodes paths",
    ),
    ("B067", &[413], "client_max_body_size"),
    ("B082 \"99999", &[400, 414], "8 KiB a line"),
    ("B090 \"../..", &[400], "above the root"),
    ("B090 \"..%2f..", &[400], "above the root"),
    ("B090 \"%2e%2e", &[400], "above the root"),
    (
        "B090 \"01920000-0000-4000-8000-000000000001%00",
        &[400],
        "nginx decodes paths",
    ),
    ("B090 \"aaaa", &[414], "8 KiB a line"),
];

fn its_own(row: &Row) -> Option<&'static [u16]> {
    let mut known = ITS_OWN.iter().filter(|(id, ..)| row.id.starts_with(id));
    known.next().map(|(_, statuses, _)| *statuses)
}

/// One row that nginx answers.
async fn answered_by_nginx(place: SocketAddr, row: Row) {
    let mut connection = Connection::open(&place).await;
    connection.send_raw(&row.bytes).await;
    if row.fin {
        connection.half_close().await;
    }
    let statuses = its_own(&row).expect("a row of nginx's own");
    if statuses.is_empty() {
        return connection.hang_up();
    }
    let answer = connection.answer(&row.id).await;
    assert!(
        statuses.contains(&answer.status),
        "{} and not one of {statuses:?}",
        answer.status
    );
}

#[tokio::test]
async fn through_nginx_the_same_requests_get_the_same_answers() {
    let (upstream, gateway) = house().await;
    let Some(nginx) = Nginx::shipped([gateway.addr(), gateway.addr()]).await else {
        return;
    };
    let apart = |rows: Vec<Row>| -> (Vec<Row>, Vec<Row>) { rows.into_iter().partition(|row| its_own(row).is_some()) };
    let (own, through) = apart(all());
    let (own_keyed, keyed) = apart(credentials::keyed_rows());
    for (id, _, why) in ITS_OWN {
        assert!(
            own.iter().chain(&own_keyed).any(|row| row.id.starts_with(id)),
            "no row {id}: {why}"
        );
    }
    assert!(
        through.len() > 6 * own.len(),
        "{} rows go through, {} do not",
        through.len(),
        own.len()
    );
    every(through, async |row| answered(nginx.addr(), row).await).await;
    nothing_happened(&upstream, &gateway, gateway.folder()).await;

    let in_order = own.iter().filter(|row| its_own(row) == Some(&[200])).count();
    let before = upstream.calls();
    every(own, async |row| answered_by_nginx(nginx.addr(), row).await).await;
    assert_eq!(
        upstream.calls() - before,
        in_order,
        "what nginx refused went no further"
    );

    let (upstream, gateway) = credentials::keyed_house().await;
    let Some(nginx) = Nginx::shipped([gateway.addr(), gateway.addr()]).await else {
        return;
    };
    every(keyed, async |row| answered(nginx.addr(), row).await).await;
    every(own_keyed, async |row| answered_by_nginx(nginx.addr(), row).await).await;
    let good = good_by(credentials::ALICE);
    nothing_happened_but(good, &upstream, &gateway, gateway.folder()).await;
}
