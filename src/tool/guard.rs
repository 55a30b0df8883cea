//! Where a tool may connect to: public addresses, and what the configuration allows beside them.
//!
//! It judges the addresses that are about to be connected to, not names: whatever a name resolved to a moment ago says
//! nothing of now. So it sits where a client resolves. An address that stands in the URL itself is never resolved, which
//! is why [`Guard::check`] looks at the URL as well.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// IPv4 networks that are not the public internet, after IANA's registry of special-purpose addresses (2026-11-21).
const NOT_PUBLIC_V4: [Ipv4Net; 17] = [
    v4([0, 0, 0, 0], 8),          // this network
    v4([10, 0, 0, 0], 8),         // private
    v4([100, 64, 0, 0], 10),      // between a carrier and its customers
    v4([127, 0, 0, 0], 8),        // loopback
    v4([168, 63, 129, 16], 32),   // public by its number, but inside Azure it is the machine's own host
    v4([169, 254, 0, 0], 16),     // link-local; the metadata of clouds
    v4([172, 16, 0, 0], 12),      // private
    v4([192, 0, 0, 0], 24),       // protocol assignments
    v4([192, 0, 2, 0], 24),       // documentation
    v4([192, 88, 99, 0], 24),     // relays of 6to4, which are no more
    v4([192, 168, 0, 0], 16),     // private
    v4([198, 18, 0, 0], 15),      // benchmarks
    v4([198, 51, 100, 0], 24),    // documentation
    v4([203, 0, 113, 0], 24),     // documentation
    v4([224, 0, 0, 0], 4),        // multicast
    v4([240, 0, 0, 0], 4),        // reserved
    v4([255, 255, 255, 255], 32), // broadcast
];

/// All that IPv6 has of global unicast. Loopback, unique local, link-local, site-local, multicast, discard, the forms
/// that hold an IPv4 address, the local form of NAT64 and whatever is not assigned yet are outside.
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// What of it is not public.
const NOT_PUBLIC_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // protocol assignments: Teredo, benchmarks, ORCHID
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), // 6to4: an IPv4 address in disguise, and no more in use
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation
];

/// The well-known prefix of NAT64, through which networks without IPv4 reach it: the last 32 bits are an IPv4 address.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

const fn v4([a, b, c, d]: [u8; 4], bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), bits)
}

/// Where a tool may connect to.
#[derive(Clone, Debug)]
pub struct Guard {
    allow: Vec<IpNet>,
}

/// Nothing of a host is an address that may be connected to. It is said in one word, without the address: that one is
/// for the log, and not for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("blocked_address")]
pub(super) struct Blocked(pub(super) IpAddr);

/// A name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name has no address")]
pub(super) struct Unresolved;

impl Guard {
    /// Public addresses, and these networks.
    #[must_use]
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self { allow }
    }

    /// Whether this address may be connected to. An IPv4 address is the same one in IPv6's clothes.
    #[must_use]
    pub fn admits(&self, ip: IpAddr) -> bool {
        let plain = ip.to_canonical();
        if self.allow.iter().any(|net| net.contains(&ip) || net.contains(&plain)) {
            return true;
        }
        match plain {
            IpAddr::V4(ip) => !NOT_PUBLIC_V4.iter().any(|net| net.contains(&ip)),
            IpAddr::V6(ip) if NAT64.contains(&ip) => {
                let [.., a, b, c, d] = ip.octets();
                self.admits(Ipv4Addr::new(a, b, c, d).into())
            }
            IpAddr::V6(ip) => GLOBAL_V6.contains(&ip) && !NOT_PUBLIC_V6.iter().any(|net| net.contains(&ip)),
        }
    }

    /// Whether a request may be made, as far as its URL says: an address in it must be admitted, a name is judged when
    /// it is resolved.
    ///
    /// # Errors
    /// The address that is not admitted.
    pub(super) fn check(&self, url: &Url) -> Result<(), Blocked> {
        let ip = match url.host() {
            Some(Host::Ipv4(ip)) => IpAddr::V4(ip),
            Some(Host::Ipv6(ip)) => IpAddr::V6(ip),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        if self.admits(ip) { Ok(()) } else { Err(Blocked(ip)) }
    }

    /// Those of a name's addresses that may be connected to. Nothing but them is connected to, so one bad address among
    /// good ones does no harm.
    fn sift(&self, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refusal> {
        let refused = found.iter().map(SocketAddr::ip).find(|ip| !self.admits(*ip));
        let admitted: Vec<SocketAddr> = found.into_iter().filter(|address| self.admits(address.ip())).collect();
        match (admitted.is_empty(), refused) {
            (false, _) => Ok(admitted),
            (true, Some(ip)) => Err(Box::new(Blocked(ip))),
            (true, None) => Err(Box::new(Unresolved)),
        }
    }
}

type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Asks for a name's addresses.
type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Resolves names to addresses that a guard admits, anew for every connection.
#[derive(Clone)]
pub(super) struct Resolver {
    guard: Guard,
    lookup: Lookup,
}

impl Resolver {
    /// The system's resolver behind this guard.
    pub(super) fn new(guard: Guard) -> Self {
        Self::of(guard, |name| {
            Box::pin(async move { Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.collect()) })
        })
    }

    /// Another resolver behind this guard.
    pub(super) fn of<L>(guard: Guard, lookup: L) -> Self
    where
        L: Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    {
        Self {
            guard,
            lookup: Arc::new(lookup),
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolver").field(&self.guard).finish()
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let found = if is_local(name.as_str()) {
            Box::pin(async { Ok(LOOPBACK.map(|ip| SocketAddr::new(ip, 0)).into()) })
        } else {
            (self.lookup)(name.as_str().to_owned())
        };
        let guard = self.guard.clone();
        Box::pin(async move {
            let found = found.await.map_err(|_| Unresolved)?;
            Ok(Box::new(guard.sift(found)?.into_iter()) as Addrs)
        })
    }
}

/// What `localhost` and the names below it are, whatever a resolver thinks of them (RFC 6761, 6.3). Not all know them in
/// all spellings, and a question about them should not leave the machine.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn is_local(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses that no tool reaches unless it is told to.
    const OUT: &[&str] = &[
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.0",
        "10.255.255.255",
        "100.64.0.0",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.1.2.3",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.0.1",
        "169.254.169.254",
        "172.16.0.0",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.0",
        "192.168.255.255",
        "198.18.0.0",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.254",
        "255.255.255.255",
        "::",
        "::1",
        "::2",
        "::7f00:1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:192.168.1.1",
        "::ffff:0.0.0.0",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b::10.1.2.3",
        "64:ff9b:1::1",
        "64:ff9b:1::8.8.8.8",
        "64:ff9b:0:0:0:1:808:808",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:808:808::1",
        "3fff::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fdff:ffff::1",
        "fe80::1",
        "fe80::1:2:3:4",
        "febf::1",
        "fec0::1",
        "feff::1",
        "ff00::1",
        "ff02::1",
        "ff0e::1",
    ];

    /// Addresses that every tool reaches, many of them next to one that none does.
    const IN: &[&str] = &[
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "168.63.129.17",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.1",
        "192.0.3.1",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2000::1",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2001:db7::1",
        "2001:db9::1",
        "2003::1",
        "2606:4700:4700::1111",
        "2a00:1450:4001:81b::200e",
        "3ffe::1",
    ];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn guard(allow: &[&str]) -> Guard {
        Guard::new(allow.iter().map(|net| net.parse().unwrap()).collect())
    }

    fn blocked(found: &[&str], allow: &[&str]) -> Result<Vec<IpAddr>, String> {
        let found = found.iter().map(|a| SocketAddr::new(ip(a), 0)).collect();
        let admitted = guard(allow).sift(found).map_err(|e| e.to_string())?;
        Ok(admitted.iter().map(SocketAddr::ip).collect())
    }

    #[test]
    fn only_public_addresses_are_admitted() {
        for address in OUT {
            assert!(!guard(&[]).admits(ip(address)), "{address} is admitted");
        }
        for address in IN {
            assert!(guard(&[]).admits(ip(address)), "{address} is refused");
        }
    }

    #[test]
    fn allowed_networks_are_admitted_in_all_their_spellings_and_nothing_else() {
        let guard = guard(&["127.0.0.0/8", "fd00:1::/32"]);
        for address in [
            "127.0.0.1",
            "::ffff:127.9.9.9",
            "64:ff9b::127.0.0.1",
            "fd00:1::5",
            "1.1.1.1",
        ] {
            assert!(guard.admits(ip(address)), "{address}");
        }
        for address in ["::1", "10.0.0.1", "169.254.169.254", "fd00:2::5", "::127.0.0.1"] {
            assert!(!guard.admits(ip(address)), "{address}");
        }
    }

    #[test]
    fn an_address_in_a_url_is_judged_in_every_spelling() {
        let refused = [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://017700000001/",
            "http://0/",
            "http://127.0.0.1./",
            "http://%31%32%37.0.0.1/",
            "http://0177.0.0.1/",
            "http://0x7F.0.0.0x1/",
            "http://127.0.0.1:80\\@8.8.8.8/",
            "http://8.8.8.8@127.0.0.1/",
            "http://8.8.8.8:80@127.0.0.1/",
            "http://127.0.0.1#@8.8.8.8/",
            "http://127.0.0.1?@8.8.8.8/",
            "http://\u{ff11}\u{ff12}\u{ff17}.\u{ff10}.\u{ff10}.\u{ff11}/",
            "http://127\u{3002}0\u{ff0e}0\u{ff61}1/",
            "http://\u{2460}27.0.0.1/",
            "http:\\\\127.0.0.1/",
            "http:///127.0.0.1/",
            "http://12\t7.0.0\n.1/",
            "http://[::ffff:0:7f00:1]/",
            "http://[64:ff9b:1::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fe80::1]/",
            "http://[fec0::1]/",
            "http://[fd00:ec2::254]/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:169.254.169.254]/latest/meta-data",
            "http://[::ffff:a9fe:a9fe]/",
            "http://169.254.169.254/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "https://10.0.0.1:8443/",
        ];
        for url in refused {
            let checked = guard(&[]).check(&Url::parse(url).unwrap());
            assert_eq!(checked.unwrap_err().to_string(), "blocked_address", "{url}");
        }
        for url in [
            "http://8.8.8.8/",
            "http://134744072/",
            "http://[2606:4700:4700::1111]/",
            "http://localhost./",
            "http://127.0.0.1../",
        ] {
            assert_eq!(guard(&[]).check(&Url::parse(url).unwrap()), Ok(()), "{url}"); // a name is judged later
        }
    }

    /// What is no host at all is no URL, so nothing is to be judged.
    #[test]
    fn an_address_with_a_zone_or_an_end_too_many_is_no_url() {
        for url in [
            "http://[fe80::1%25eth0]/",
            "http://[fe80::1%eth0]/",
            "http://256.0.0.1/",
            "http://1.2.3.4.5/",
            "http://0x100000000/",
            "http://4294967296/",
            "http://127.0.0.1%00.example/",
            "http://127.0.0.08/",
            "http://[::1/",
            "http://[127.0.0.1]/",
        ] {
            assert!(Url::parse(url).is_err(), "{url} is {:?}", Url::parse(url));
        }
    }

    #[test]
    fn what_is_allowed_is_allowed_to_the_bit() {
        for (net, inside, outside) in [
            (
                "10.1.0.0/16",
                &["10.1.0.0", "10.1.255.255"][..],
                &["10.0.255.255", "10.2.0.0"][..],
            ),
            ("192.168.7.7/32", &["192.168.7.7"], &["192.168.7.6", "192.168.7.8"]),
            (
                "169.254.169.254/31",
                &["169.254.169.254", "169.254.169.255"],
                &["169.254.169.253"],
            ),
            ("fd00:1::/64", &["fd00:1::1"], &["fd00:1:0:1::", "fd00::1", "fe80::1"]),
            ("::1/128", &["::1"], &["127.0.0.1", "::", "::2"]),
            (
                "64:ff9b:1::/48",
                &["64:ff9b:1::7f00:1"],
                &["127.0.0.1", "64:ff9b::7f00:1"],
            ),
        ] {
            let guard = guard(&[net]);
            for address in inside {
                assert!(guard.admits(ip(address)), "{net} {address}");
            }
            for address in outside {
                assert!(!guard.admits(ip(address)), "{net} {address}");
            }
        }
    }

    #[test]
    fn of_a_names_addresses_only_the_admitted_are_connected_to() {
        assert_eq!(blocked(&["8.8.8.8", "127.0.0.1", "::1"], &[]), Ok(vec![ip("8.8.8.8")]));
        assert_eq!(blocked(&["127.0.0.1", "::1"], &[]), Err("blocked_address".into()));
        assert_eq!(blocked(&["127.0.0.1", "::1"], &["::1/128"]), Ok(vec![ip("::1")]));
        assert_eq!(blocked(&[], &[]), Err("the name has no address".into()));
    }
}
