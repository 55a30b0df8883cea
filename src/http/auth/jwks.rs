//! The keys of an issuer: fetched from where the configuration says and from nowhere else, refreshed before they are old,
//! and fetched again when a token names one that is not known, at most once in a while, however many such tokens come.
//!
//! One task fetches ([`Jwks::keep`]), so there is never more than one fetch at a time, and none that a caller who hangs up
//! breaks off. A set is used until there is a newer one: when the issuer is away, those whom it knows are still known.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use reqwest::{Client, Url, header::ACCEPT};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use crate::error::{Error, ErrorCode};

/// How long connecting to the issuer may take, and the whole of a fetch.
const CONNECT: Duration = Duration::from_secs(3);
const WHOLE: Duration = Duration::from_secs(5);
/// How much of an answer is read.
const MAX_ANSWER: usize = 256 << 10;

/// How often keys are fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// After a fetch that went well.
    refresh: Duration,
    /// After the first that did not; after each further one twice as long, as far as `refresh`.
    again: Duration,
    /// The least time between two fetches that were made because a token named an unknown key.
    asked: Duration,
}

const PACE: Pace = Pace {
    refresh: Duration::from_secs(300),
    again: Duration::from_secs(1),
    asked: Duration::from_secs(5),
};

/// The keys of an issuer, as they are known at the moment.
pub(super) struct Jwks {
    url: Url,
    client: Client,
    pace: Pace,
    known: watch::Sender<Known>,
    asked: Mutex<Option<Asked>>,
    wake: Notify,
}

/// What is known.
#[derive(Default)]
struct Known {
    /// The newest set; `None` as long as there has not been any.
    keys: Option<Arc<[Key]>>,
    /// How many fetches have begun, and how many are over.
    begun: u64,
    over: u64,
}

/// A fetch that was asked for.
#[derive(Clone, Copy)]
struct Asked {
    at: Instant,
    /// Which one it is, counted as in [`Known`].
    fetch: u64,
}

/// A key that signatures can be checked with.
struct Key {
    id: String,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Jwks {
    pub(super) fn new(url: &str) -> Result<Self, String> {
        Self::paced(url, PACE)
    }

    fn paced(url: &str, pace: Pace) -> Result<Self, String> {
        let url = address(url)?;
        let mut client = Client::builder()
            .user_agent(concat!("sluicegate/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none()) // the keys are where the configuration says
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .pool_max_idle_per_host(0); // the next fetch is minutes away
        if is_loopback(&url) {
            client = client.no_proxy();
        }
        Ok(Self {
            url,
            client: client.build().map_err(|e| format!("no HTTP client: {e}"))?,
            pace,
            known: watch::Sender::default(),
            asked: Mutex::new(None),
            wake: Notify::new(),
        })
    }

    /// The issuer's key of that id for that algorithm. Where it is not known, it is asked for first, if that has not just
    /// been done.
    ///
    /// # Errors
    /// `store_unavailable`: there has been no set of keys yet, so nobody can say.
    pub(super) async fn find(&self, id: &str, algorithm: Algorithm) -> Result<Option<DecodingKey>, Error> {
        let mut known = self.known.subscribe();
        if let Some(key) = known.borrow().find(id, algorithm) {
            return Ok(Some(key));
        }
        let fetch = self.ask();
        // Both deadlines of the fetch are shorter; whoever waits is not there for longer than it.
        let _ = timeout(WHOLE * 2, known.wait_for(|known| known.over >= fetch)).await;
        let known = known.borrow();
        if known.keys.is_none() {
            let away = "The keys of the issuer of these tokens could not be fetched.";
            return Err(Error::new(ErrorCode::StoreUnavailable, away).retry_after(self.pace.asked));
        }
        Ok(known.find(id, algorithm))
    }

    /// Asks for a fetch, unless one was asked for a moment ago; says which fetch will have the answer.
    fn ask(&self) -> u64 {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(asked) = asked.filter(|asked| now.duration_since(asked.at) < self.pace.asked) {
            return asked.fetch;
        }
        let known = self.known.borrow();
        if known.over == 0 {
            return 1; // the first is on its way
        }
        // One that is on its way may have set out before the issuer had the key.
        let fetch = known.begun + 1;
        *asked = Some(Asked { at: now, fetch });
        self.wake.notify_one();
        fetch
    }

    /// Fetches the keys again and again, for ever.
    pub(super) async fn keep(&self) {
        let mut failed = 0_u32;
        loop {
            self.known.send_modify(|known| known.begun += 1);
            let fetched = self.fetch().await;
            let wait = match &fetched {
                Ok(_) => self.pace.refresh,
                Err(_) => (self.pace.again * (1 << failed.min(16))).min(self.pace.refresh),
            };
            match &fetched {
                Ok(keys) if failed > 0 => tracing::info!(keys = keys.len(), "the issuer's keys are there again"),
                Ok(keys) => tracing::debug!(keys = keys.len(), "the issuer's keys were fetched"),
                Err(cause) => tracing::warn!(cause, "the issuer's keys could not be fetched from {}", self.url),
            }
            failed = if fetched.is_ok() { 0 } else { failed + 1 };
            self.known.send_modify(|known| {
                known.over += 1;
                if let Ok(keys) = fetched {
                    known.keys = Some(keys);
                }
            });
            tokio::select! {
                () = sleep(wait) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    async fn fetch(&self) -> Result<Arc<[Key]>, String> {
        let asked = self.client.get(self.url.clone()).header(ACCEPT, "application/json");
        let mut answer = asked.send().await.map_err(plain)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(format!("the answer was {}", answer.status().as_u16()));
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(plain)? {
            if bytes.len() + piece.len() > MAX_ANSWER {
                return Err("the answer is too long".into());
            }
            bytes.extend_from_slice(&piece);
        }
        let set: Set = serde_json::from_slice(&bytes).map_err(|_| "the answer is no set of keys".to_owned())?;
        Ok(set.keys.into_iter().filter_map(usable).collect())
    }
}

impl Known {
    fn find(&self, id: &str, algorithm: Algorithm) -> Option<DecodingKey> {
        let fits = |key: &&Key| key.id == id && key.algorithms.contains(&algorithm);
        let found = self.keys.iter().flat_map(|keys| keys.iter()).find(fits);
        found.map(|key| key.key.clone())
    }
}

/// RFC 7517, section 5. A key that is not understood does not spoil the others.
#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// A key that can check signatures, and for which algorithms: those of its type only, and the one that it names.
fn usable(key: serde_json::Value) -> Option<Key> {
    use Algorithm::*;

    let key: Jwk = serde_json::from_value(key).ok()?;
    let algorithms = match &key.algorithm {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512][..],
        AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => &[ES256],
        AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P384 => &[ES384],
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => &[EdDSA],
        _ => return None, // a shared secret (`oct`) is no key that everybody may read
    };
    let about = &key.common;
    let signs = about
        .public_key_use
        .as_ref()
        .is_none_or(|u| *u == PublicKeyUse::Signature);
    let verifies = about
        .key_operations
        .as_ref()
        .is_none_or(|all| all.contains(&KeyOperations::Verify));
    let named = about.key_algorithm;
    let algorithms: Vec<Algorithm> = algorithms
        .iter()
        .copied()
        .filter(|algorithm| named.is_none_or(|named| named == (*algorithm).into()))
        .collect();
    if !signs || !verifies || algorithms.is_empty() {
        return None;
    }
    Some(Key {
        id: about.key_id.clone()?,
        algorithms,
        key: DecodingKey::from_jwk(&key).ok()?,
    })
}

/// Where keys are: over TLS, or on this machine.
fn address(url: &str) -> Result<Url, String> {
    let url: Url = url.parse().map_err(|_| "must be an address".to_owned())?;
    let plain = url.scheme() == "http" && is_loopback(&url);
    if !(url.scheme() == "https" || plain) || !url.username().is_empty() || url.password().is_some() {
        return Err("must be an https:// address without a password; http:// on this machine only".into());
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// What went wrong, with its causes: the outermost one says little.
fn plain(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn ed(id: &str) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
    }

    /// An issuer whose set is `body`, and how often it was asked.
    async fn issuer(body: Arc<Mutex<String>>) -> (String, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]).await;
                let body = body.lock().unwrap().clone();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        (url, asked, task)
    }

    #[test]
    fn a_key_is_for_the_algorithms_of_its_type() {
        let of = |key: Value| usable(key).map(|key| key.algorithms).unwrap_or_default();
        assert_eq!(of(ed("a")), [Algorithm::EdDSA]);
        let rsa = |more: Value| {
            let mut key = json!({"kty": "RSA", "kid": "r", "n": "sXch", "e": "AQAB"});
            key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of(key)
        };
        assert_eq!(rsa(json!({})).len(), 6);
        assert_eq!(rsa(json!({"alg": "PS256", "use": "sig"})), [Algorithm::PS256]);
        assert_eq!(rsa(json!({"alg": "RS256", "key_ops": ["verify"]})), [Algorithm::RS256]);
        for unfit in [
            json!({"use": "enc"}),
            json!({"key_ops": ["encrypt"]}),
            json!({"alg": "RSA-OAEP"}),
            json!({"alg": "HS256"}),
            json!({"alg": "ES256"}),
            json!({"kid": null}),
            json!({"kty": "oct", "k": "c2VjcmV0"}),
            json!({"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}),
            json!({"n": "not base64url!"}),
        ] {
            assert_eq!(rsa(unfit.clone()), [], "{unfit}");
        }
    }

    #[test]
    fn keys_come_over_tls_or_from_this_machine() {
        for fine in [
            "https://issuer.example/keys",
            "http://127.0.0.1:1/k",
            "http://localhost/k",
            "http://[::1]/k",
        ] {
            assert!(address(fine).is_ok(), "{fine}");
        }
        for wrong in [
            "",
            "issuer.example",
            "http://issuer.example/keys",
            "http://localhost.evil.example/",
            "https://a:b@issuer.example/keys",
            "file:///etc/keys",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn keys_are_fetched_again_before_they_are_old_and_kept_when_there_are_none_to_be_had() {
        let body = Arc::new(Mutex::new(json!({"keys": [ed("a")]}).to_string()));
        let (url, asked, _issuer) = issuer(body.clone()).await;
        let pace = Pace {
            refresh: Duration::from_millis(20),
            again: Duration::from_millis(5),
            asked: Duration::from_secs(600),
        };
        let jwks = Arc::new(Jwks::paced(&url, pace).unwrap());
        let keeper = tokio::spawn({
            let jwks = jwks.clone();
            async move { jwks.keep().await }
        });
        assert!(jwks.find("a", Algorithm::EdDSA).await.unwrap().is_some());
        assert!(
            jwks.find("a", Algorithm::RS256).await.unwrap().is_none(),
            "another type"
        );
        *body.lock().unwrap() = json!({"keys": [ed("b"), {"kty": "unheard of"}, 7]}).to_string();
        let mut known = jwks.known.subscribe();
        let has = |id: &'static str| move |known: &Known| known.find(id, Algorithm::EdDSA).is_some();
        let patience = Duration::from_secs(10);
        timeout(patience, known.wait_for(has("b"))).await.unwrap().unwrap();
        assert!(jwks.find("a", Algorithm::EdDSA).await.unwrap().is_none(), "taken back");
        for broken in ["", "[]", "{}", "{\"keys\":{}}", &"x".repeat(MAX_ANSWER + 1)] {
            *body.lock().unwrap() = broken.to_owned();
            let over = known.borrow().over;
            timeout(patience, known.wait_for(|known| known.over > over + 1))
                .await
                .unwrap()
                .unwrap();
            assert!(
                jwks.find("b", Algorithm::EdDSA).await.unwrap().is_some(),
                "{broken:.10}"
            );
        }
        assert!(asked.load(Ordering::SeqCst) > 10);
        keeper.abort();
    }

    #[tokio::test]
    async fn a_thousand_unknown_keys_are_asked_for_once() {
        let body = Arc::new(Mutex::new(json!({"keys": [ed("a")]}).to_string()));
        let (url, asked, _issuer) = issuer(body.clone()).await;
        let jwks = Arc::new(Jwks::new(&url).unwrap());
        let keeper = tokio::spawn({
            let jwks = jwks.clone();
            async move { jwks.keep().await }
        });
        assert!(jwks.find("a", Algorithm::EdDSA).await.unwrap().is_some());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // "b" is new: those who come with it wait for the one fetch that brings it, beside those who forge.
        *body.lock().unwrap() = json!({"keys": [ed("b")]}).to_string();
        let all = (0..1000).map(|n| {
            let id = if n % 2 == 0 {
                "b".to_owned()
            } else {
                format!("forged-{n}")
            };
            let jwks = jwks.clone();
            async move { jwks.find(&id, Algorithm::EdDSA).await.unwrap().is_some() == (id == "b") }
        });
        assert!(futures_util::future::join_all(all).await.into_iter().all(|right| right));
        for n in 0..1000 {
            assert!(
                jwks.find(&format!("later-{n}"), Algorithm::EdDSA)
                    .await
                    .unwrap()
                    .is_none()
            );
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        keeper.abort();
    }

    #[tokio::test]
    async fn before_there_is_any_key_nobody_can_say_who_is_right() {
        let body = Arc::new(Mutex::new("not yet".to_owned()));
        let (url, _asked, _issuer) = issuer(body).await;
        let jwks = Arc::new(Jwks::new(&url).unwrap());
        let keeper = tokio::spawn({
            let jwks = jwks.clone();
            async move { jwks.keep().await }
        });
        let refused = jwks.find("a", Algorithm::EdDSA).await.map(|_| ()).unwrap_err();
        assert_eq!(refused.code, ErrorCode::StoreUnavailable);
        assert!(refused.retry_after.is_some());
        keeper.abort();
    }
}
