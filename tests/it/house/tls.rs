//! A door of TLS in front of an upstream: it shows a certificate, a good one or not, or breaks the handshake off; what
//! comes through goes to the upstream as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;

use super::{Place, Task};

/// Who signs certificates, and is trusted by whoever is given its own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut about = CertificateParams::default();
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = about.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(about, key),
            pem,
        }
    }

    /// Its own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }
}

/// What a door does with those who come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shows {
    Good,
    Expired,
    AnotherName,
    SelfSigned,
    /// A good certificate, to those alone who speak HTTP/2.
    Http2Alone,
    /// Takes the first words of the handshake, and says nothing.
    Silence,
    /// Takes the first words of the handshake, and resets the connection.
    Reset,
}

/// The door; it closes when it is dropped.
#[derive(Debug)]
pub(crate) struct Door {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// The protocols that the last one who came would speak.
    offered: watch::Receiver<Vec<String>>,
    _server: Task,
}

impl Place for Door {
    fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Door {
    /// A door in front of this place.
    pub(crate) async fn before(place: &impl Place, shows: Shows, authority: &Authority) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (addr, behind) = (listener.local_addr().expect("a bound socket"), place.addr());
        let config = Arc::new(config(shows, authority));
        let (offers, offered) = watch::channel(Vec::new());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let server = Task::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Relaxed);
                open.spawn(pass(stream, shows, behind, config.clone(), offers.clone()));
                while open.try_join_next().is_some() {}
            }
        });
        Self {
            addr,
            connections,
            offered,
            _server: server,
        }
    }

    /// How many came so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// The protocols that the last one who came would speak.
    pub(crate) fn offered(&self) -> Vec<String> {
        self.offered.borrow().clone()
    }
}

fn config(shows: Shows, authority: &Authority) -> ServerConfig {
    let name = match shows {
        Shows::AnotherName => "elsewhere.invalid",
        _ => "127.0.0.1",
    };
    let mut about = CertificateParams::new([name.to_owned()]).expect("a name");
    if shows == Shows::Expired {
        (about.not_before, about.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
    }
    let key = KeyPair::generate().expect("a key");
    let certificate = match shows {
        Shows::SelfSigned => about.self_signed(&key),
        _ => about.signed_by(&key, &authority.issuer),
    };
    let chain = vec![CertificateDer::from(certificate.expect("a certificate"))];
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions of TLS").with_no_client_auth();
    let mut config = config.with_single_cert(chain, key).expect("a certificate and its key");
    config.alpn_protocols = match shows {
        Shows::Http2Alone => vec![b"h2".to_vec()],
        _ => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    config
}

/// One who came.
async fn pass(
    mut stream: TcpStream,
    shows: Shows,
    behind: SocketAddr,
    config: Arc<ServerConfig>,
    offers: watch::Sender<Vec<String>>,
) {
    if matches!(shows, Shows::Silence | Shows::Reset) {
        let mut hello = [0; 1024];
        while let Ok(1..) = stream.read(&mut hello).await {
            if shows == Shows::Reset {
                stream.set_zero_linger().expect("a socket that lingers not");
                return;
            }
        }
        return;
    }
    let Ok(hello) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else {
        return;
    };
    let spoken = hello.client_hello().alpn().into_iter().flatten();
    offers.send_replace(spoken.map(|name| String::from_utf8_lossy(name).into_owned()).collect());
    let (Ok(mut stream), Ok(mut upstream)) = (hello.into_stream(config).await, TcpStream::connect(behind).await) else {
        return;
    };
    let _ = copy_bidirectional(&mut stream, &mut upstream).await;
}
