//! What the kernel knows of a client that says nothing: one that has no room for what is written, or that is not listened to.
//!
//! Asked over netlink, `SOCK_DIAG_BY_FAMILY` for one socket with `INET_DIAG_INFO` (Linux, sock_diag(7), read 2026-11-21):
//! some ten microseconds.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::TcpStream;

/// A connection's two ends, ours first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends(SocketAddr, SocketAddr);

/// Whether a client is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is.
    Here,
    /// It has closed its end.
    Left,
    /// The kernel has no such connection, or does not tell.
    Unknown,
}

impl Ends {
    /// Those of an open connection.
    ///
    /// # Errors
    /// It has none any more.
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        Ok(Self(stream.local_addr()?, stream.peer_addr()?))
    }

    /// How long ago the client's kernel was heard of last, if it has been asked something since and has not answered.
    /// `None` for one that answers, be it that it has no room, and where the kernel does not tell.
    #[cfg(target_os = "linux")]
    pub(super) fn silent(self) -> Option<Duration> {
        linux::unanswered(&linux::tcp_info(self).ok().flatten()?)
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn silent(self) -> Option<Duration> {
        None
    }

    /// Whether the client is still there.
    #[cfg(target_os = "linux")]
    pub(super) fn presence(self) -> Presence {
        linux::tcp_info(self)
            .ok()
            .flatten()
            .map_or(Presence::Unknown, |info| linux::presence(&info))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn presence(self) -> Presence {
        Presence::Unknown
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{io, net::SocketAddr, time::Duration};

    use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_sock_diag::{
        AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
        inet::{ExtensionFlags, InetRequest, SocketId, StateFlags, nlas::Nla},
    };
    use netlink_sys::{Socket, SocketAddr as Kernel, protocols::NETLINK_SOCK_DIAG};

    use super::{Ends, Presence};

    /// The kernel's `struct tcp_info` for a connection, if it knows the connection.
    pub(super) fn tcp_info(Ends(local, peer): Ends) -> io::Result<Option<Vec<u8>>> {
        let mut question = NetlinkMessage::new(
            NetlinkHeader::default(),
            SockDiagMessage::InetRequest(InetRequest {
                family: match local {
                    SocketAddr::V4(_) => AF_INET,
                    SocketAddr::V6(_) => AF_INET6,
                },
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::INFO,
                states: StateFlags::all(),
                socket_id: SocketId {
                    source_port: local.port(),
                    destination_port: peer.port(),
                    source_address: local.ip(),
                    destination_address: peer.ip(),
                    interface_id: 0,
                    cookie: [0xff; 8], // whichever
                },
            })
            .into(),
        );
        question.header.flags = NLM_F_REQUEST;
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        let kernel = Socket::new(NETLINK_SOCK_DIAG)?;
        kernel.set_non_blocking(true)?; // the answer is there when the question has been taken
        kernel.send_to(&bytes, &Kernel::new(0, 0), 0)?;
        let (answer, _) = kernel.recv_from_full()?;
        let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
        let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) = answer.payload else {
            return Ok(None);
        };
        Ok(answer.nlas.into_iter().find_map(|attribute| match attribute {
            Nla::TcpInfo(info) => Some(info),
            _ => None,
        }))
    }

    /// How long nobody has answered, from what the kernel says (`include/uapi/linux/tcp.h`, 6.18).
    pub(super) fn unanswered(info: &[u8]) -> Option<Duration> {
        let number = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
        // tcpi_probes: whether there is room was asked so often since an answer. Once or twice may be lost on the way.
        let probes = *info.get(3)?;
        // tcpi_last_data_sent and tcpi_last_ack_recv, milliseconds ago.
        let (sent, heard) = (number(44)?, number(56)?);
        (probes > 2 || sent < heard).then(|| Duration::from_millis(heard.into()))
    }

    /// Whether the client is there, from the same (tcpi_state; its numbers are in `include/net/tcp_states.h`).
    pub(super) fn presence(info: &[u8]) -> Presence {
        const ESTABLISHED: u8 = 1;
        match info.first() {
            Some(&ESTABLISHED) => Presence::Here,
            Some(_) => Presence::Left,
            None => Presence::Unknown,
        }
    }

    #[cfg(test)]
    mod tests {
        use tokio::{
            io::{AsyncReadExt, AsyncWriteExt},
            net::{TcpListener, TcpStream},
        };

        use super::*;

        #[tokio::test]
        async fn the_kernel_tells_of_a_connection() {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let Ok(listener) = TcpListener::bind(address).await else {
                    assert!(address.starts_with('['), "there is always IPv4");
                    continue;
                };
                let (client, accepted) =
                    tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
                let (mut client, (mut server, _)) = (client.unwrap(), accepted.unwrap());
                server.write_all(b"word").await.unwrap();
                client.read_exact(&mut [0; 4]).await.unwrap();
                let ends = Ends::of(&server).unwrap();
                let info = tcp_info(ends).unwrap().expect("a connection that the kernel knows");
                assert_eq!(info.first(), Some(&1), "{address}: TCP_ESTABLISHED");
                assert!(info.len() >= 60, "{address}: {}", info.len());
                assert_eq!(unanswered(&info), None, "{address}: it answers");
                assert_eq!(ends.presence(), Presence::Here, "{address}");
                client.shutdown().await.unwrap();
                assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
                assert_eq!(ends.presence(), Presence::Left, "{address}");
                drop(server);
                assert_ne!(ends.presence(), Presence::Here, "{address}");
            }
        }

        #[test]
        fn who_was_asked_and_did_not_answer_is_silent() {
            let info = |probes: u8, sent: u32, heard: u32| {
                let mut info = vec![0; 232];
                info[3] = probes;
                info[44..48].copy_from_slice(&sent.to_ne_bytes());
                info[56..60].copy_from_slice(&heard.to_ne_bytes());
                info
            };
            let ago = |ms| Some(Duration::from_millis(ms));
            assert_eq!(unanswered(&info(0, 500, 500)), None, "answered at once");
            assert_eq!(unanswered(&info(0, 9_000, 400)), None, "has no room, and says so");
            assert_eq!(
                unanswered(&info(2, 9_000, 8_000)),
                None,
                "has had no room, and an answer was lost"
            );
            assert_eq!(
                unanswered(&info(3, 9_000, 8_000)),
                ago(8_000),
                "has had no room, and says nothing any more"
            );
            assert_eq!(
                unanswered(&info(0, 1_000, 8_000)),
                ago(8_000),
                "was written to, again and again"
            );
            assert_eq!(unanswered(&[0; 40]), None, "a kernel of long ago");
        }
    }
}
