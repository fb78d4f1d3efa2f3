//! Which addresses an endpoint in a configuration may lead to: a KMS's, or a log system's.
//!
//! Whoever writes an endpoint chooses where our process connects to, with the process's place in the network. So an address is
//! judged by what it reaches, after the name has been looked up, each time that a connection is made.
//!
//! The kinds follow IANA's registries of special-purpose addresses (RFC 6890). An IPv6 address that stands for an IPv4
//! one is judged as that.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What an address reaches, from the harmless to what no endpoint can have. Of two that apply the later counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressKind {
    /// The Internet. Always allowed.
    Public,
    /// A network of the operator's: private, shared, unique local, or reserved.
    Private,
    /// This machine, or this pod: also its services that trust whoever reaches them.
    Loopback,
    /// This machine's own link.
    LinkLocal,
    /// A cloud's service that gives this machine's credentials to whoever asks from it.
    Metadata,
    /// No single machine: unspecified, multicast, broadcast. Never allowed.
    Unusable,
}

impl AddressKind {
    /// The kinds that can be allowed, with the words for them.
    const WORDS: [(&str, Self); 5] = [
        ("public", Self::Public),
        ("private", Self::Private),
        ("loopback", Self::Loopback),
        ("link-local", Self::LinkLocal),
        ("metadata", Self::Metadata),
    ];

    /// The word in sentences.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Metadata => "metadata-service",
            Self::Unusable => "unspecified, multicast or broadcast",
        }
    }

    /// What `address` reaches.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        if METADATA_V4.contains(&address) {
            Self::Metadata
        } else if within(&UNUSABLE_V4) || address.is_broadcast() {
            Self::Unusable
        } else if address.is_loopback() {
            Self::Loopback
        } else if address.is_link_local() {
            Self::LinkLocal
        } else if within(&PRIVATE_V4) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let own = if METADATA_V6.contains(&address) {
            Self::Metadata
        } else if address.is_unspecified() || address.is_multicast() {
            Self::Unusable
        } else if address.is_loopback() {
            Self::Loopback
        } else if address.is_unicast_link_local() {
            Self::LinkLocal
        } else if PRIVATE_V6.iter().any(|net| net.contains(&address)) {
            Self::Private
        } else {
            Self::Public
        };
        embedded_v4(address).map_or(own, |inner| own.max(Self::of_v4(inner)))
    }
}

/// Services that tell credentials of the machine, or other secrets of its set-up: AWS, Google, Azure and others on one
/// address; AWS's container and pod credentials; Alibaba; Oracle; Azure's wire server.
const METADATA_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];

/// The same: AWS, its pod credentials, Google.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// "This network", which Linux takes for the loopback, and multicast.
const UNUSABLE_V4: [Ipv4Net; 2] = [v4([0, 0, 0, 0], 8), v4([224, 0, 0, 0], 4)];

/// Private use, shared (RFC 6598), protocol assignments, documentation, benchmarks (RFC 2544), reserved.
const PRIVATE_V4: [Ipv4Net; 10] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([198, 18, 0, 0], 15),
    v4([240, 0, 0, 0], 4),
];

/// Unique local, site-local, discard-only, documentation, and translation of local use (RFC 8215).
const PRIVATE_V6: [Ipv6Net; 6] = [
    v6([0xfc00, 0, 0], 7),
    v6([0xfec0, 0, 0], 10),
    v6([0x100, 0, 0], 64),
    v6([0x2001, 0xdb8, 0], 32),
    v6([0x3fff, 0, 0], 20),
    v6([0x64, 0xff9b, 1], 48),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b, c]: [u16; 3], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// The IPv4 address that an IPv6 one stands for: mapped or compatible (RFC 4291), translated (RFC 6052, RFC 8215), 6to4
/// (RFC 3056), Teredo (RFC 4380), ISATAP (RFC 5214).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let pair = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // `::` and `::1` are what they are.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0 | 1, .., high, low]
        | [0x2002, high, low, ..] => Some(pair(high, low)),
        [0x2001, 0, .., high, low] => Some(pair(!high, !low)),
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(pair(high, low)),
        _ => None,
    }
}

/// The addresses that endpoints may lead to, besides public ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destinations {
    kinds: Vec<AddressKind>,
    nets: Vec<IpNet>,
}

/// Entries of one list: more than any network plan needs.
const ENTRIES_MAX: usize = 256;

impl Destinations {
    /// For endpoints that the operator wrote: his own networks and this machine too. Appliances stand in private
    /// networks, and a KMS may run beside the proxy. Nobody writes a link-local or metadata address on purpose.
    #[must_use]
    pub fn of_the_operators_endpoints() -> Self {
        Self {
            kinds: vec![AddressKind::Private, AddressKind::Loopback],
            nets: Vec::new(),
        }
    }

    /// For endpoints that tenants wrote: public addresses only. Else a tenant could send the proxy to whatever the
    /// operator's network hides from the Internet.
    #[must_use]
    pub fn of_tenants_endpoints() -> Self {
        Self {
            kinds: Vec::new(),
            nets: Vec::new(),
        }
    }

    /// Reads a comma-separated list of words (`public`, `private`, `loopback`, `link-local`, `metadata`), addresses and
    /// networks such as `10.4.0.0/16`.
    ///
    /// # Errors
    /// What is wrong with an entry, in words for the operator.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut destinations = Self::of_tenants_endpoints();
        for (index, entry) in list.split(',').map(str::trim).enumerate() {
            if index == ENTRIES_MAX {
                return Err(format!("has more than {ENTRIES_MAX} entries"));
            }
            if let Some((_, kind)) = AddressKind::WORDS.iter().find(|(word, _)| *word == entry) {
                destinations.kinds.push(*kind);
                continue;
            }
            let net = match entry.parse::<IpAddr>() {
                Ok(address) => IpNet::from(address),
                Err(_) => entry.parse::<IpNet>().map_err(|_| {
                    let words = AddressKind::WORDS.map(|(word, _)| word).join(", ");
                    format!("has an entry that is neither an address, nor a network such as 10.4.0.0/16, nor one of {words}")
                })?,
            };
            if net.trunc() != net {
                let meant = net.trunc();
                return Err(format!(
                    "has {net}, whose address goes beyond its prefix; {meant} would be the network"
                ));
            }
            destinations.nets.push(net);
        }
        Ok(destinations)
    }

    /// Whether our process may connect to `address`.
    ///
    /// # Errors
    /// [`Forbidden`] says what the address is.
    pub fn check(&self, address: IpAddr) -> Result<(), Forbidden> {
        let kind = AddressKind::of(address);
        let inner = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => embedded_v4(address).map(IpAddr::V4),
        };
        let listed = |net: &IpNet| {
            let found = net.contains(&address) || inner.is_some_and(|inner| net.contains(&inner));
            // A wide network is not meant to let these in: they are named, or stay out.
            let exact = net.prefix_len() == net.max_prefix_len();
            found && (kind != AddressKind::Metadata || exact)
        };
        let allowed = match kind {
            AddressKind::Public => true,
            AddressKind::Unusable => false,
            AddressKind::Private
            | AddressKind::Loopback
            | AddressKind::LinkLocal
            | AddressKind::Metadata => self.kinds.contains(&kind) || self.nets.iter().any(listed),
        };
        if allowed {
            Ok(())
        } else {
            Err(Forbidden { address, kind })
        }
    }
}

/// An address that our process may not connect to. Displays without the address, which whoever wrote the endpoint may not
/// be meant to learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// The address.
    pub address: IpAddr,
    /// What it reaches.
    pub kind: AddressKind,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str();
        write!(
            f,
            "the endpoint leads to a {kind} address, to which this proxy may not connect"
        )
    }
}

impl std::error::Error for Forbidden {}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str) -> AddressKind {
        AddressKind::of(address.parse().unwrap())
    }

    fn allows(list: &str, address: &str) -> bool {
        let destinations = Destinations::parse(list).unwrap();
        destinations.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn addresses_are_judged_by_what_they_reach() {
        use AddressKind::{LinkLocal, Loopback, Metadata, Private, Public, Unusable};
        for (expected, addresses) in [
            (
                Public,
                [
                    "1.1.1.1",
                    "172.32.0.1",
                    "100.128.0.1",
                    "2606:4700::1",
                    "2001:4860::8",
                ]
                .as_slice(),
            ),
            (
                Private,
                &[
                    "10.0.0.1",
                    "172.31.255.255",
                    "192.168.0.1",
                    "100.64.0.1",
                    "198.19.0.1",
                    "203.0.113.9",
                ],
            ),
            (
                Private,
                &[
                    "240.0.0.1",
                    "fc00::1",
                    "fdff::1",
                    "fec0::1",
                    "100::1",
                    "2001:db8::1",
                    "64:ff9b:1::101:101",
                ],
            ),
            (Loopback, &["127.0.0.1", "127.255.255.254", "::1"]),
            (LinkLocal, &["169.254.0.1", "fe80::1", "febf::1"]),
            (
                Metadata,
                &[
                    "169.254.169.254",
                    "169.254.170.2",
                    "100.100.100.200",
                    "168.63.129.16",
                ],
            ),
            (Metadata, &["fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"]),
            (
                Unusable,
                &[
                    "0.0.0.0",
                    "0.1.2.3",
                    "224.0.0.1",
                    "255.255.255.255",
                    "::",
                    "ff02::1",
                ],
            ),
        ] {
            for address in addresses {
                assert_eq!(kind(address), expected, "{address}");
            }
        }
    }

    #[test]
    fn an_ipv6_address_that_stands_for_an_ipv4_one_is_judged_as_that() {
        use AddressKind::{Loopback, Metadata, Private, Public, Unusable};
        for (expected, address) in [
            (Loopback, "::ffff:127.0.0.1"),
            (Metadata, "::ffff:169.254.169.254"),
            (Unusable, "::ffff:0.0.0.0"),
            (Public, "::ffff:1.1.1.1"),
            (Loopback, "::127.0.0.1"),
            (Metadata, "::ffff:0:169.254.169.254"),
            (Private, "64:ff9b::10.0.0.1"),
            (Metadata, "64:ff9b::169.254.169.254"),
            (Public, "64:ff9b::1.1.1.1"),
            (Metadata, "64:ff9b:1::169.254.169.254"),
            (Metadata, "2002:a9fe:a9fe::1"),
            (Public, "2002:101:101::1"),
            (Metadata, "2001:0:4136:e378:8000:63bf:5601:5601"),
            (Loopback, "2606:4700::5efe:127.0.0.1"),
            (Loopback, "2606:4700::200:5efe:127.0.0.1"),
        ] {
            assert_eq!(kind(address), expected, "{address}");
        }
    }

    #[test]
    fn the_defaults_differ_in_the_operators_own_networks_alone() {
        let operators = Destinations::of_the_operators_endpoints();
        let tenants = Destinations::of_tenants_endpoints();
        for (address, by_operator, by_tenants) in [
            ("1.1.1.1", true, true),
            ("10.0.0.1", true, false),
            ("::ffff:10.0.0.1", true, false),
            ("127.0.0.1", true, false),
            ("::1", true, false),
            ("169.254.0.1", false, false),
            ("169.254.169.254", false, false),
            ("fd00:ec2::254", false, false),
            ("0.0.0.0", false, false),
            ("ff02::1", false, false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(operators.check(address).is_ok(), by_operator, "{address}");
            assert_eq!(tenants.check(address).is_ok(), by_tenants, "{address}");
        }
    }

    #[test]
    fn what_is_listed_is_allowed_and_nothing_else() {
        assert!(allows("10.4.0.0/16", "10.4.9.9"));
        assert!(allows("10.4.0.0/16", "::ffff:10.4.9.9"));
        assert!(!allows("10.4.0.0/16", "10.5.0.1"));
        assert!(allows("10.4.0.0/16, loopback", "127.0.0.1"));
        assert!(allows("fd12::/16", "fd12::1"));
        assert!(!allows("public", "10.0.0.1"));
        assert!(allows("public", "1.1.1.1"));
        assert!(allows("10.0.0.1", "1.1.1.1"), "public ones always are");
        assert!(allows("link-local", "fe80::1"));
        assert!(!allows("0.0.0.0/0,::/0", "0.0.0.0"));
        assert!(!allows("0.0.0.0/0,::/0", "ff02::1"));
    }

    #[test]
    fn a_metadata_service_is_let_in_by_its_name_only() {
        for list in ["link-local", "169.254.0.0/16", "private", "0.0.0.0/0"] {
            assert!(!allows(list, "169.254.169.254"), "{list}");
        }
        assert!(!allows("fc00::/7,private", "fd00:ec2::254"));
        assert!(!allows("100.64.0.0/10", "100.100.100.200"));
        for list in ["metadata", "169.254.169.254", "169.254.169.254/32"] {
            assert!(allows(list, "169.254.169.254"), "{list}");
        }
        assert!(allows("169.254.169.254", "::ffff:169.254.169.254"));
        assert!(allows("fd00:ec2::254", "fd00:ec2::254"));
        assert!(!allows("metadata", "169.254.0.1"));
    }

    #[test]
    fn a_list_that_is_none_is_refused_in_words() {
        for (list, word) in [
            ("", "10.4.0.0/16"),
            ("Private", "loopback"),
            ("10.0.0.0/33", "network"),
            ("10.4.3.2/16", "10.4.0.0/16 would be"),
            ("kms.example", "neither"),
            ("private,,loopback", "neither"),
        ] {
            let why = Destinations::parse(list).unwrap_err();
            assert!(why.contains(word), "{list}: {why}");
        }
        let long = vec!["10.0.0.1"; ENTRIES_MAX + 1].join(",");
        assert!(
            Destinations::parse(&long)
                .unwrap_err()
                .contains("more than")
        );
    }
}
