//! A name server on loopback that answers every question for an address with the addresses that the story sets.
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

use super::Task;

/// The longest question that is read, in bytes (RFC 1035, 2.3.4).
const MAX_DATAGRAM: usize = 512;
/// A response that is authoritative and without an error, to a question that wants recursion.
const FLAGS: [u8; 2] = [0x85, 0x80];

/// A name server that ends when it is dropped.
pub(crate) struct NameServer {
    addr: SocketAddr,
    addresses: Arc<Mutex<Vec<Ipv4Addr>>>,
    _task: Task,
}

impl NameServer {
    /// Starts one that knows these addresses.
    pub(crate) async fn start(addresses: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let addr = socket.local_addr().expect("a bound socket");
        let addresses = Arc::new(Mutex::new(addresses.to_vec()));
        let answers = addresses.clone();
        let task = Task::spawn(async move {
            let mut question = [0; MAX_DATAGRAM];
            while let Ok((size, from)) = socket.recv_from(&mut question).await {
                let answers = answers.lock().expect("no panic").clone();
                let reply = reply(&question[..size], &answers);
                let _ = socket.send_to(&reply, from).await; // a lost datagram is asked for again
            }
        });
        Self {
            addr,
            addresses,
            _task: task,
        }
    }

    /// The address that it listens on.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces the addresses.
    pub(crate) fn set(&self, addresses: &[Ipv4Addr]) {
        *self.addresses.lock().expect("no panic") = addresses.to_vec();
    }
}

/// The message that answers `question` (RFC 1035, 4.1): its header, the question itself, one record for each address.
fn reply(question: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
    let count = u8::try_from(addresses.len()).expect("few addresses");
    let mut reply = question[..2].to_vec();
    reply.extend(FLAGS);
    reply.extend([0, 1, 0, count, 0, 0, 0, 0]);
    let name_end = 12
        + question[12..]
            .iter()
            .position(|byte| *byte == 0)
            .expect("the end of a name");
    reply.extend(&question[12..name_end + 5]);
    for address in addresses {
        // The name is the one at byte 12; an address (1) of the internet (1), valid for one second, of four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}
