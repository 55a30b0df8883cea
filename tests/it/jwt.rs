//! Tokens of an issuer: whom they let in, as whom, and everything that they do not.
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use aws_lc_rs::{hmac, rand::SystemRandom};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::watch;

use crate::house::{Call, Gate, Gateway, Script, Task, Upstream, eventually, openai, reserved_port};

const ISS: &str = "https://issuer.example/";
const AUD: &str = "sluicegate";

/// A key pair of an issuer's.
enum Pair {
    Ed(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
}

impl Pair {
    fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn p384() -> Self {
        Self::P384(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap())
    }

    fn rsa(how: &'static dyn RsaEncoding) -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()), how)
    }

    /// As it stands in a set of keys.
    fn jwk(&self, kid: &str) -> Value {
        let word = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let point = |curve: &str, pair: &EcdsaKeyPair| {
            let point = &pair.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            json!({"kty": "EC", "crv": curve, "kid": kid, "x": word(x), "y": word(y)})
        };
        match self {
            Self::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": word(pair.public_key().as_ref())})
            }
            Self::P256(pair) => point("P-256", pair),
            Self::P384(pair) => point("P-384", pair),
            Self::Rsa(pair, _) => {
                let public = pair.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({"kty": "RSA", "kid": kid, "use": "sig",
                       "n": word(n.big_endian_without_leading_zero()), "e": word(e.big_endian_without_leading_zero())})
            }
        }
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed(pair) => pair.sign(text).as_ref().to_vec(),
            Self::P256(pair) | Self::P384(pair) => pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec(),
            Self::Rsa(pair, how) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*how, &SystemRandom::new(), text, &mut signature).unwrap();
                signature
            }
        }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// What a good token says, with this instead: `null` takes a claim away.
fn claims(instead: Value) -> Value {
    let good = json!({"iss": ISS, "aud": AUD, "sub": "ada", "exp": now() + 300, "iat": now()});
    with(good, instead)
}

fn with(mut all: Value, instead: Value) -> Value {
    for (name, value) in instead.as_object().unwrap() {
        match value {
            Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
            value => all[name] = value.clone(),
        }
    }
    all
}

/// A token, signed in any way.
fn signed(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(text.as_bytes()));
    format!("{text}.{signature}")
}

/// A token as an issuer makes it.
fn token(pair: &Pair, alg: &str, kid: &str, claims: &Value) -> String {
    signed(&json!({"typ": "JWT", "alg": alg, "kid": kid}), claims, |text| {
        pair.sign(text)
    })
}

/// An issuer: it answers with its set of keys, whatever it is asked.
struct Issuer {
    addr: SocketAddr,
    set: Arc<Mutex<String>>,
    /// How often it was asked.
    asked: watch::Sender<usize>,
    task: Option<Task>,
}

impl Issuer {
    async fn start(keys: &[Value]) -> Self {
        let mut issuer = Self {
            addr: reserved_port().local_addr().unwrap(),
            set: Arc::new(Mutex::new(json!({"keys": keys}).to_string())),
            asked: watch::Sender::default(),
            task: None,
        };
        issuer.open(TcpSocket::new_v4().unwrap(), ([127, 0, 0, 1], 0).into());
        issuer
    }

    fn open(&mut self, socket: TcpSocket, addr: SocketAddr) {
        socket.set_reuseaddr(true).unwrap();
        socket.bind(addr).unwrap();
        self.listen(socket);
    }

    fn listen(&mut self, socket: TcpSocket) {
        let listener = socket.listen(64).unwrap();
        self.addr = listener.local_addr().unwrap();
        let (set, asked) = (self.set.clone(), self.asked.clone());
        self.task = Some(Task::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                asked.send_modify(|asked| *asked += 1);
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let set = set.lock().unwrap().clone();
                let told = format!("Content-Length: {}\r\nConnection: close\r\n\r\n{set}", set.len());
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{told}").as_bytes()).await;
            }
        }));
    }

    fn publish(&self, keys: &[Value]) {
        *self.set.lock().unwrap() = json!({"keys": keys}).to_string();
    }

    fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    /// The settings that take its tokens.
    fn toml(&self) -> String {
        format!(
            "[auth.jwt]\nissuer = \"{ISS}\"\naudience = \"{AUD}\"\njwks_url = \"http://{}/keys\"",
            self.addr
        )
    }
}

async fn house(toml: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let gateway = Gateway::with(&upstream).toml(toml).start().await;
    (upstream, gateway)
}

fn ask(token: &str) -> Call {
    Call::post("/chat")
        .json(&json!({"message": "Hi", "session_id": "s"}))
        .header("Authorization", &format!("Bearer {token}"))
}

fn bearer(call: Call, token: &str) -> Call {
    call.header("Authorization", &format!("Bearer {token}"))
}

#[tokio::test]
async fn who_has_a_token_of_the_issuers_is_who_it_says() {
    let pairs = [
        (Pair::ed(), "EdDSA"),
        (Pair::p256(), "ES256"),
        (Pair::p384(), "ES384"),
        (Pair::rsa(&RSA_PKCS1_SHA256), "RS256"),
        (Pair::rsa(&RSA_PSS_SHA512), "PS512"),
    ];
    let keys: Vec<Value> = pairs.iter().map(|(pair, alg)| pair.jwk(alg)).collect();
    let issuer = Issuer::start(&keys).await;
    // A key whose name is a subject's is another caller.
    let key = format!("[[auth.keys]]\nname = \"ada\"\nsha256 = \"{}\"", sha256("KEY"));
    let (upstream, gateway) = house(&format!("{}\n{key}", issuer.toml())).await;

    for (pair, alg) in &pairs {
        let token = token(pair, alg, alg, &claims(json!({})));
        let answer = ask(&token).to(&gateway).await.expect(200).await.json().await;
        assert_eq!(answer["session_id"], "s", "{alg}");
        let call = Call::get("/sessions/s").header("X-Api-Key", &token);
        call.to(&gateway).await.expect(200).await;
    }
    assert_eq!(upstream.calls(), pairs.len());

    let (pair, alg) = &pairs[0];
    let of = |instead: Value| token(pair, alg, alg, &claims(instead));
    for fine in [
        json!({"aud": ["other", AUD]}),
        json!({"exp": now() - 20}), // clocks differ a little
        json!({"nbf": now() + 20}),
        json!({"exp": now() as f64 + 100.5}),
        json!({"iat": "nonsense that nobody reads", "jti": {"a": 1}}),
    ] {
        let call = bearer(Call::get("/sessions/s"), &of(fine.clone()));
        assert_eq!(call.to(&gateway).await.status, 200, "{fine}");
    }
    for header in [
        json!({"alg": "EdDSA", "kid": "EdDSA"}),
        json!({"alg": "EdDSA", "kid": "EdDSA", "typ": "at+jwt"}),
        json!({"alg": "EdDSA", "kid": "EdDSA", "typ": "application/AT+JWT"}),
    ] {
        let token = signed(&header, &claims(json!({})), |text| pair.sign(text));
        assert_eq!(
            bearer(Call::get("/sessions/s"), &token).to(&gateway).await.status,
            200,
            "{header}"
        );
    }

    let stranger = of(json!({"sub": "bob"}));
    let unknown = bearer(Call::get("/sessions/t"), &stranger)
        .to(&gateway)
        .await
        .expect(404)
        .await;
    let foreign = bearer(Call::get("/sessions/s"), &stranger)
        .to(&gateway)
        .await
        .expect(404)
        .await;
    assert_eq!(foreign.body().await.text().len(), unknown.body().await.text().len());
    let call = Call::get("/sessions/s").header("X-Api-Key", "KEY");
    assert_eq!(call.to(&gateway).await.expect(404).await.problem().await, "not_found");
    let longest = of(json!({"sub": "\u{fc}".repeat(256)}));
    ask(&longest).to(&gateway).await.expect(200).await;
}

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_token_that_anything_is_wrong_with_is_no_token() {
    let began = std::time::Instant::now();
    let (ed, p256) = (Pair::ed(), Pair::p256());
    let rsa = Pair::rsa(&RSA_PKCS1_SHA256);
    let secret = json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode("secret")});
    let sealing = with(rsa.jwk("enc"), json!({"use": "enc"}));
    let keys = [ed.jwk("ed"), p256.jwk("p256"), rsa.jwk("rsa"), sealing, secret];
    let issuer = Issuer::start(&keys).await;
    let key = format!("[[auth.keys]]\nname = \"web\"\nsha256 = \"{}\"", sha256("KEY"));
    let (upstream, gateway) = house(&format!("{}\n{key}", issuer.toml())).await;
    let good = token(&ed, "EdDSA", "ed", &claims(json!({})));
    ask(&good).to(&gateway).await.expect(200).await;
    let parts: Vec<&str> = good.split('.').collect();

    let mut attacks: Vec<(String, String)> = Vec::new();
    let mut attack = |what: &str, token: String| attacks.push((what.to_owned(), token));
    for alg in ["none", "None", "NONE", ""] {
        let header = json!({"alg": alg, "kid": "ed"});
        attack("no signature", signed(&header, &claims(json!({})), |_| Vec::new()));
        attack(
            "a signature of nothing",
            signed(&header, &claims(json!({})), |text| ed.sign(text)),
        );
    }
    attack("no signature at all", format!("{}.{}.", parts[0], parts[1]));
    attack("two parts", format!("{}.{}", parts[0], parts[1]));
    attack("four parts", format!("{good}.{}", parts[2]));
    // What everybody may read as if it were a secret.
    let public = |key: &Value| key.to_string().into_bytes();
    let modulus = URL_SAFE_NO_PAD.decode(rsa.jwk("rsa")["n"].as_str().unwrap()).unwrap();
    let point = URL_SAFE_NO_PAD.decode(ed.jwk("ed")["x"].as_str().unwrap()).unwrap();
    for (kid, known) in [
        ("rsa", modulus),
        ("ed", point),
        ("rsa", public(&rsa.jwk("rsa"))),
        ("oct", b"secret".to_vec()),
    ] {
        let mac = |text: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &known);
            hmac::sign(&key, text).as_ref().to_vec()
        };
        attack(
            "a public key as a secret",
            signed(&json!({"alg": "HS256", "kid": kid}), &claims(json!({})), mac),
        );
    }
    for (what, instead) in [
        ("another issuer", json!({"iss": "https://issuer.example"})),
        ("another issuer", json!({"iss": "https://evil.example/"})),
        ("two issuers", json!({"iss": [ISS, "https://evil.example/"]})),
        ("no issuer", json!({"iss": null})),
        ("another audience", json!({"aud": "sluicegate.evil"})),
        ("other audiences", json!({"aud": ["a", "b"]})),
        ("no audience", json!({"aud": null})),
        ("an empty audience", json!({"aud": []})),
        ("expired", json!({"exp": now() - 60})),
        ("expired long ago", json!({"exp": 0})),
        ("no end", json!({"exp": null})),
        ("an end in words", json!({"exp": "2099-01-01"})),
        ("an end before all times", json!({"exp": -1})),
        ("not yet", json!({"nbf": now() + 120})),
        ("not yet, in words", json!({"nbf": "tomorrow"})),
        ("nobody's", json!({"sub": null})),
        ("nobody's", json!({"sub": ""})),
        ("a number's", json!({"sub": 7})),
        ("too long a name", json!({"sub": "x".repeat(257)})),
        ("a name with a line break", json!({"sub": "ada\nroot"})),
        ("a name with a NUL", json!({"sub": "ada\u{0}"})),
    ] {
        attack(what, token(&ed, "EdDSA", "ed", &claims(instead)));
    }
    let mut header =
        |what: &str, header: Value| attack(what, signed(&header, &claims(json!({})), |text| ed.sign(text)));
    header("no key named", json!({"alg": "EdDSA"}));
    header("an unknown key", json!({"alg": "EdDSA", "kid": "eD"}));
    header("a key of another type", json!({"alg": "EdDSA", "kid": "p256"}));
    header("another algorithm than its key's", json!({"alg": "ES256", "kid": "ed"}));
    header("no algorithm", json!({"kid": "ed"}));
    header(
        "a thing that must be understood",
        json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": false}),
    );
    header(
        "a token for something else",
        json!({"alg": "EdDSA", "kid": "ed", "typ": "logout+jwt"}),
    );
    attack(
        "RSA, with a key of a curve",
        token(&rsa, "RS256", "ed", &claims(json!({}))),
    );
    attack(
        "a key that is for sealing",
        token(&rsa, "RS256", "enc", &claims(json!({}))),
    );
    // Whoever brings their own key, or says where it is.
    let own = Pair::ed();
    let elsewhere = Issuer::start(&[own.jwk("ed")]).await;
    let place = format!("http://{}/keys", elsewhere.addr);
    for more in [
        json!({"jwk": own.jwk("ed")}),
        json!({"jku": place}),
        json!({"x5u": place}),
        json!({"x5c": ["MIIB"]}),
    ] {
        let header = with(json!({"alg": "EdDSA", "kid": "ed"}), more);
        attack(
            "a key of one's own",
            signed(&header, &claims(json!({})), |text| own.sign(text)),
        );
    }
    let body = URL_SAFE_NO_PAD.encode(claims(json!({"sub": "root"})).to_string());
    attack("another's claims", format!("{}.{body}.{}", parts[0], parts[2]));
    let twice = claims(json!({}))
        .to_string()
        .replace("\"sub\":\"ada\"", "\"sub\":\"ada\",\"sub\":\"root\"");
    let text = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode(twice));
    attack(
        "two names",
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(ed.sign(text.as_bytes()))),
    );
    attack(
        "too long",
        token(&ed, "EdDSA", "ed", &claims(json!({"x": "x".repeat(8 << 10)}))),
    );
    attack("padded", format!("{good}=="));
    attack("no JSON", "eyJ9.eyJ9.AAAA".to_owned());
    attack("words", "a.b.c".to_owned());

    let refused = async |token: &str, header: &str| {
        let told = if header == "X-Api-Key" {
            token.to_owned()
        } else {
            format!("Bearer {token}")
        };
        let call = Call::post("/chat")
            .json(&json!({"message": "Hi"}))
            .header(header, &told);
        let answer = call.header("X-Request-Id", "same").to(&gateway).await;
        assert_eq!(answer.headers.get("www-authenticate"), Some("Bearer"));
        (answer.status, answer.body().await.text().to_owned())
    };
    let wrong_key = refused("sluice_nobodys", "X-Api-Key").await;
    assert_eq!(wrong_key.0, 401);
    let calls = upstream.calls();
    for (what, token) in &attacks {
        for header in ["Authorization", "X-Api-Key"] {
            assert_eq!(refused(token, header).await, wrong_key, "{what}: {token}");
        }
    }
    assert_eq!(upstream.calls(), calls);
    assert_eq!(elsewhere.asked(), 0, "what a token says of keys is not listened to");
    let most = 3 + began.elapsed().as_secs() / 5; // once in five seconds, whatever names it is asked for
    assert!(issuer.asked() as u64 <= most, "asked {} times", issuer.asked());
    ask(&good).to(&gateway).await.expect(200).await;
    // A good token with strange company is a good token: the company is not looked at.
    let header = json!({"alg": "EdDSA", "kid": "ed", "jwk": own.jwk("ed"), "jku": place, "x5u": place});
    let token = signed(&header, &claims(json!({})), |text| ed.sign(text));
    ask(&token).to(&gateway).await.expect(200).await;
    assert_eq!(elsewhere.asked(), 0);
}

#[tokio::test]
async fn a_token_may_do_what_the_settings_say() {
    let pair = Pair::ed();
    let issuer = Issuer::start(&[pair.jwk("k")]).await;
    let more = "scope = \"chat\"\nagents = [\"help*\"]\ntools = [\"calculator\"]\n\
                [agents.helper]\nmodel = \"openai/test-model\"\ntools = [\"calculator\", \"current_time\"]";
    let (upstream, gateway) = house(&format!("{}\n{more}", issuer.toml())).await;
    let of = |instead: Value| token(&pair, "EdDSA", "k", &claims(instead));
    for lacks in [
        json!({}),
        json!({"scope": "chats read"}),
        json!({"scope": ""}),
        json!({"scp": ["read", "chat "]}),
    ] {
        let answer = ask(&of(lacks.clone())).to(&gateway).await.expect(403).await;
        assert_eq!(answer.problem().await, "forbidden", "{lacks}");
        let call = Call::get("/agents").header("X-Api-Key", &of(lacks));
        assert_eq!(call.to(&gateway).await.expect(403).await.problem().await, "forbidden");
    }
    // Who has no good token does not learn that a scope is wanted.
    let expired = of(json!({"exp": now() - 100}));
    assert_eq!(
        ask(&expired).to(&gateway).await.expect(401).await.problem().await,
        "auth_invalid"
    );
    assert_eq!(upstream.calls(), 0);
    for has in [
        json!({"scope": "read chat"}),
        json!({"scp": ["chat"]}),
        json!({"scp": "chat write"}),
    ] {
        let asked = Call::post("/chat").json(&json!({"message": "Hi", "agent": "helper"}));
        bearer(asked, &of(has.clone())).to(&gateway).await.expect(200).await;
        let agents = bearer(Call::get("/agents"), &of(has)).to(&gateway).await.json().await;
        let agents = agents["agents"].as_array().unwrap();
        assert_eq!((agents.len(), &agents[0]["name"]), (1, &json!("helper")));
        assert_eq!(agents[0]["tools"], json!(["calculator"]));
    }
    let body = json!({"message": "Hi", "agent": "assistant"});
    let call = bearer(Call::post("/chat").json(&body), &of(json!({"scope": "chat"})));
    assert_eq!(call.to(&gateway).await.expect(403).await.problem().await, "forbidden");
}

#[tokio::test]
async fn an_issuer_changes_its_keys_and_nobody_waits_for_it() {
    let began = std::time::Instant::now();
    let (old, new) = (Pair::ed(), Pair::p256());
    let issuer = Issuer::start(&[old.jwk("old")]).await;
    let (_upstream, gateway) = house(&issuer.toml()).await;
    let (before, after) = (
        token(&old, "EdDSA", "old", &claims(json!({}))),
        token(&new, "ES256", "new", &claims(json!({}))),
    );
    ask(&before).to(&gateway).await.expect(200).await;
    issuer.publish(&[new.jwk("new")]);
    ask(&after).to(&gateway).await.expect(200).await;
    assert_eq!(
        ask(&before).to(&gateway).await.expect(401).await.problem().await,
        "auth_invalid"
    );
    // Forged names of keys are no way to make the gateway ask for ever.
    for n in 0..200 {
        let forged = token(&old, "EdDSA", &format!("forged-{n}"), &claims(json!({})));
        ask(&forged).to(&gateway).await.expect(401).await;
    }
    let most = 4 + began.elapsed().as_secs() / 5;
    assert!(issuer.asked() as u64 <= most, "asked {} times", issuer.asked());
}

#[tokio::test]
async fn an_issuer_that_is_away_takes_nobody_along() {
    let pair = Pair::ed();
    let port = reserved_port();
    let mut issuer = Issuer::start(&[pair.jwk("k")]).await;
    issuer.task = None;
    issuer.addr = port.local_addr().unwrap();
    let key = format!("[[auth.keys]]\nname = \"web\"\nsha256 = \"{}\"", sha256("KEY"));
    let (upstream, gateway) = house(&format!("{}\n{key}", issuer.toml())).await;
    let good = token(&pair, "EdDSA", "k", &claims(json!({})));
    // It is not there yet: nobody can say whether the token is good, and that is what is said.
    let answer = ask(&good).to(&gateway).await.expect(503).await;
    assert!(answer.headers.get("retry-after").is_some());
    assert_eq!(answer.problem().await, "store_unavailable");
    assert_eq!(
        ask("a.b.c").to(&gateway).await.expect(401).await.problem().await,
        "auth_invalid"
    );
    let call = Call::get("/agents").header("X-Api-Key", "KEY");
    assert_eq!(call.to(&gateway).await.status, 200, "keys need no issuer");
    assert_eq!(upstream.calls(), 0);
    // It comes,
    issuer.listen(port);
    eventually("the issuer's keys", async || {
        let status = ask(&good).to(&gateway).await.status;
        assert!(matches!(status, 200 | 503), "{status}");
        (status == 200).then_some(())
    })
    .await;
    // and goes: what was known is still known.
    issuer.task = None;
    let forged = token(&pair, "EdDSA", "other", &claims(json!({})));
    ask(&forged).to(&gateway).await.expect(401).await;
    ask(&good).to(&gateway).await.expect(200).await;
}

#[tokio::test]
async fn a_stream_outlives_the_token_that_began_it() {
    let pair = Pair::ed();
    let issuer = Issuer::start(&[pair.jwk("k")]).await;
    let gate = Gate::new("the token's end");
    let script = Script::sse().role().say("Hel").wait(&gate).say("lo").complete();
    let upstream = Upstream::always(script).await;
    let gateway = Gateway::with(&upstream).toml(&issuer.toml()).start().await;
    // It has expired already, but not for longer than clocks may differ.
    let short = token(&pair, "EdDSA", "k", &claims(json!({"exp": now() - 25})));
    let call = bearer(Call::post("/chat/sse").json(&json!({"message": "Hi"})), &short);
    let mut stream = call.to(&gateway).await.expect(200).await;
    stream.next_event_named("token").await;
    eventually("the token's end", async || {
        let status = bearer(Call::get("/agents"), &short).to(&gateway).await.status;
        (status == 401).then_some(())
    })
    .await;
    gate.open();
    let told = stream.transcript().await;
    assert_eq!(
        (told.text().as_str(), told.terminal().event.as_str()),
        ("Hello", "done")
    );
}

#[tokio::test]
async fn a_ticket_ends_with_the_token_that_it_was_made_with_and_its_run_does_not() {
    let pair = Pair::ed();
    let issuer = Issuer::start(&[pair.jwk("k")]).await;
    let (upstream, gateway) = house(&issuer.toml()).await;
    let end = now() + 6;
    let short = token(&pair, "EdDSA", "k", &claims(json!({"exp": end})));
    let ticket = async || {
        let issued = bearer(Call::post("/tickets"), &short)
            .to(&gateway)
            .await
            .expect(201)
            .await
            .json()
            .await;
        assert!(issued["expires_in"].as_u64().unwrap() <= 6, "{issued}");
        issued["ticket"].as_str().unwrap().to_owned()
    };
    let (used, unused) = (ticket().await, ticket().await);
    let told = Call::get(&format!("/chat/sse?message=Hi&ticket={used}"))
        .to(&gateway)
        .await;
    let told = told.expect(200).await.transcript().await;
    let run = told.events[0].json()["run_id"].as_str().unwrap().to_owned();
    while jiff::Timestamp::now().as_second() < end {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let late = Call::get(&format!("/chat/sse?message=Hi&ticket={unused}"))
        .to(&gateway)
        .await;
    assert_eq!(late.expect(401).await.problem().await, "ticket_invalid");
    assert_eq!(upstream.calls(), 1);
    let back = Call::get(&format!("/runs/{run}/events?ticket={used}"))
        .to(&gateway)
        .await;
    assert_eq!(back.expect(200).await.transcript().await.text(), "Hello");
}

#[tokio::test]
async fn an_issuer_makes_a_gateway_that_may_listen_anywhere() {
    let settings = |more: &str| {
        let jwt = "[auth.jwt]\nissuer = \"https://i.example\"\naudience = [\"a\", \"b\"]\n";
        sluicegate::config::Settings::from_toml(&format!("[server]\nlisten = \"0.0.0.0:0\"\n{jwt}{more}"))
    };
    let fine = settings("jwks_url = \"https://i.example/keys\"").unwrap();
    assert!(sluicegate::app::check(&fine).is_ok());
    assert!(fine.access.guarded() && !fine.access.open() && !fine.access.exposed() && fine.access.names.any);
    assert!(fine.effective().unwrap().contains("[auth.jwt]"));
    for (wrong, told) in [
        (
            "jwks_url = \"http://i.example/keys\"",
            "auth.jwt: jwks_url: must be an https:// address",
        ),
        ("jwks_url = \"https://a:canary@i.example/keys\"", "without a password"),
        ("jwks_url = \"i.example\"", "must be an address"),
        (
            "jwks_url = \"https://i.example\"\nagents = [\"nobody\"]",
            "auth.jwt: there is no agent",
        ),
    ] {
        let error = sluicegate::app::check(&settings(wrong).unwrap()).unwrap_err();
        assert!(
            error.message.contains(told) && !error.message.contains("canary"),
            "{}",
            error.message
        );
    }
    for wrong in [
        "",
        "jwks_url = \"https://i.example\"\nscope = \"a b\"",
        "jwks_uri = \"https://i.example\"",
    ] {
        assert!(settings(wrong).is_err(), "{wrong}");
    }
    let nobody = "[auth.jwt]\nissuer = \"i\"\naudience = []\njwks_url = \"https://i.example\"";
    assert!(sluicegate::config::Settings::from_toml(nobody).is_err());
}
