//! Lists, by page.
use super::*;

/// Walks all pages.
async fn walk(gateway: &impl Place, path: &str, list: &str) -> Vec<Value> {
    let (mut all, mut cursor) = (Vec::new(), Value::Null);
    for _ in 0..100 {
        let joint = if path.contains('?') { '&' } else { '?' };
        let next = cursor
            .as_str()
            .map_or(path.to_owned(), |cursor| format!("{path}{joint}cursor={cursor}"));
        let page = read(gateway, &next).await;
        let members: Vec<_> = page.as_object().unwrap().keys().collect();
        assert_eq!(members.len(), 2, "{page}");
        all.extend(
            page[list]
                .as_array()
                .unwrap_or_else(|| panic!("{page}"))
                .iter()
                .cloned(),
        );
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            return all;
        }
    }
    panic!("pages without end");
}

#[tokio::test]
async fn sessions_are_listed_newest_first_by_user_and_by_page() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    assert_eq!(
        read(&gateway, "/sessions").await,
        json!({"sessions": [], "next_cursor": null})
    );
    for number in 0..7 {
        let user = if number % 2 == 0 { "ada" } else { "bob" };
        let body = json!({"message": "Hi", "session_id": format!("s{number}"), "user_id": user});
        post(&gateway, "/chat", body).await.expect(200).await;
        tokio::time::sleep(Duration::from_millis(2)).await; // a moment of its own for each
    }
    ask(&gateway, "s0", "Again").await; // which does not make it newer
    for (path, expected) in [
        ("/sessions", vec!["s6", "s5", "s4", "s3", "s2", "s1", "s0"]),
        ("/sessions?user_id=ada", vec!["s6", "s4", "s2", "s0"]),
        ("/sessions?user_id=bob", vec!["s5", "s3", "s1"]),
        ("/sessions?user_id=nobody", vec![]),
    ] {
        for limit in [1, 2, 3, 4, 7, 200] {
            let joint = if path.contains('?') { '&' } else { '?' };
            let all = walk(&gateway, &format!("{path}{joint}limit={limit}"), "sessions").await;
            assert_eq!(ids(&json!({"sessions": all})), expected, "{path}, {limit} a page");
        }
    }
    let first = read(&gateway, "/sessions?limit=1").await;
    let mut listed = first["sessions"][0].clone();
    listed["active_run"] = Value::Null; // which only the session itself says
    assert_eq!(listed, read(&gateway, "/sessions/s6").await);
    for query in [
        "limit=0",
        "limit=201",
        "limit=-1",
        "limit=x",
        "limit=",
        "cursor=x",
        "cursor=",
        "cursor=%00",
        "page=2",
        "limit=1&limit=2",
    ] {
        let refused = get(&gateway, &format!("/sessions?{query}")).await;
        assert!(matches!(refused.status, 400 | 422), "{query}: {}", refused.status);
        refused.problem().await;
    }
}

#[tokio::test]
async fn messages_are_given_oldest_first_by_page() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut runs = Vec::new();
    for number in 0..4 {
        runs.push(ask(&gateway, "s", &format!("question {number}")).await["run_id"].clone());
    }
    let all = walk(&gateway, "/sessions/s/messages", "messages").await;
    assert_eq!(all.len(), 8);
    for (at, message) in all.iter().enumerate() {
        let (role, content) = match at % 2 {
            0 => ("user", format!("question {}", at / 2)),
            _ => ("assistant", format!("answer {}", at / 2)),
        };
        let expected = json!({"role": role, "content": content, "tool_calls": [], "tool_call_id": null,
                "run_id": runs[at / 2], "status": "complete", "created_at": message["created_at"]});
        assert_eq!(message, &expected);
        assert!(is_time(&message["created_at"]));
    }
    for limit in [1, 2, 3, 7, 8, 9, 200] {
        assert_eq!(
            walk(&gateway, &format!("/sessions/s/messages?limit={limit}"), "messages").await,
            all,
            "{limit} a page"
        );
    }
    for path in [
        "/sessions/t/messages",
        "/sessions/t",
        "/sessions/a%20b",
        "/sessions/%2e%2e/messages",
    ] {
        assert_eq!(
            status_and_code(get(&gateway, path).await).await,
            (404, "not_found".into()),
            "{path}"
        );
    }
    for query in ["limit=0", "limit=201", "cursor=x", "user_id=", "user=a"] {
        let refused = get(&gateway, &format!("/sessions/s/messages?{query}")).await;
        assert!(matches!(refused.status, 400 | 422), "{query}: {}", refused.status);
    }
}
