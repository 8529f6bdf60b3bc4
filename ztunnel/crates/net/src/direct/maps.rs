//! The maps of bpf/direct.h, by the descriptors that the agent hands over. Owns the layouts of bpf/capture.h on this side and
//! the system call; knows nothing of who may go where.

use std::io;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// Entries per system call.
const BATCH: usize = 512;

const LOOKUP: libc::c_int = 1;
const UPDATE: libc::c_int = 2;
const DELETE: libc::c_int = 3;
const GET_INFO: libc::c_int = 15;
const LOOKUP_BATCH: libc::c_int = 24;

/// What may lie in a map: no padding, every bit pattern a value.
///
/// # Safety
/// `repr(C)`, without padding and without references.
unsafe trait Plain: Copy + Default {}

/// struct mesh_address: an IPv4 address in its mapped form.
pub type Address = [u8; 16];

pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// struct mesh_tuple; ports in host order.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tuple {
    pub netns: u64,
    from: Address,
    to: Address,
    from_port: u16,
    to_port: u16,
    zero: u32,
}

impl Tuple {
    pub fn from(&self) -> SocketAddr {
        SocketAddr::new(ip(self.from), self.from_port)
    }

    pub fn to(&self) -> SocketAddr {
        SocketAddr::new(ip(self.to), self.to_port)
    }
}

/// struct mesh_pass_key.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PassKey {
    netns: u64,
    to: Address,
    port_be: u16,
    zero: [u16; 3],
}

impl PassKey {
    pub fn new(netns: u64, to: SocketAddr) -> Self {
        Self {
            netns,
            to: address(to.ip()),
            port_be: to.port().to_be(),
            zero: [0; 3],
        }
    }
}

/// struct mesh_pass.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass {
    pub number: u64,
    pub issuer: u64,
    pub epoch: u64,
    pub netns: u64,
    pub until_ns: u64,
    pub to: Address,
    pub port_be: u16,
    pub zero: [u16; 3],
}

/// struct mesh_issuer.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Issuer {
    pub seen_ns: u64,
    pub epoch: u64,
}

/// struct mesh_direct_key.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Key {
    pub socket: u64,
    pub began_ns: u64,
}

/// enum mesh_direct_state.
pub mod state {
    pub const NEW: u32 = 0;
    pub const OPEN: u32 = 2;
    pub const CLOSED: u32 = 3;
}

/// struct mesh_direct: one connection.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Record {
    pub tuple: Tuple,
    pub pass: u64,
    pub issuer: u64,
    pub netns: u64,
    pub sent: u64,
    pub received: u64,
    pub state: u32,
    pub was_open: u32,
}

impl Record {
    /// It ended before the other end had accepted it.
    pub fn state_says_refused(&self) -> bool {
        self.state == state::CLOSED && self.was_open == 0
    }
}

const _: () = {
    assert!(size_of::<Tuple>() == 48);
    assert!(size_of::<PassKey>() == 32);
    assert!(size_of::<Pass>() == 64 && offset_of!(Pass, port_be) == 56);
    assert!(size_of::<Record>() == 96 && offset_of!(Record, state) == 88);
};

// SAFETY: `repr(C)` of integers and arrays of them; the sizes above leave no room for padding.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for PassKey {}
// SAFETY: as above.
unsafe impl Plain for Pass {}
// SAFETY: as above.
unsafe impl Plain for Issuer {}
// SAFETY: as above.
unsafe impl Plain for Key {}
// SAFETY: as above.
unsafe impl Plain for Record {}

/// mesh_passes, mesh_issuers, mesh_direct.
#[derive(Debug)]
pub struct Maps {
    passes: OwnedFd,
    issuers: OwnedFd,
    connections: OwnedFd,
}

impl Maps {
    pub fn new([passes, issuers, connections]: [OwnedFd; 3]) -> Self {
        Self {
            passes,
            issuers,
            connections,
        }
    }

    /// Whether both mean the same maps of the kernel.
    pub fn is_same_as(&self, other: &Self) -> io::Result<bool> {
        Ok(id(&self.connections)? == id(&other.connections)?
            && id(&self.passes)? == id(&other.passes)?)
    }

    pub fn grant(&self, key: PassKey, pass: Pass) -> io::Result<()> {
        update(&self.passes, &key, &pass)
    }

    pub fn revoke(&self, key: PassKey) {
        delete(&self.passes, &key);
    }

    pub fn live(&self, issuer: u64, life: Issuer) -> io::Result<()> {
        update(&self.issuers, &issuer, &life)
    }

    pub fn die(&self, issuer: u64) {
        delete(&self.issuers, &issuer);
    }

    pub fn issuer(&self, issuer: u64) -> Option<Issuer> {
        lookup(&self.issuers, &issuer)
    }

    pub fn connection(&self, key: Key) -> Option<Record> {
        lookup(&self.connections, &key)
    }

    pub fn forget(&self, key: Key) {
        delete(&self.connections, &key);
    }

    /// All of them; what comes or goes meanwhile may be missed.
    pub fn connections(&self) -> io::Result<Vec<(Key, Record)>> {
        let (mut keys, mut records) = ([Key::default(); BATCH], [Record::default(); BATCH]);
        let (mut found, mut position, mut begun) = (Vec::new(), 0_u32, false);
        loop {
            let mut next = 0_u32;
            let mut ask = Batch {
                from: if begun {
                    (&raw const position).addr() as u64
                } else {
                    0
                },
                next: (&raw mut next).addr() as u64,
                keys: keys.as_mut_ptr().addr() as u64,
                values: records.as_mut_ptr().addr() as u64,
                count: BATCH as u32,
                map: self.connections.as_raw_fd() as u32,
                ..Batch::default()
            };
            let done = bpf(LOOKUP_BATCH, &mut ask);
            let is_last = match &done {
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                Err(_) => return done.map(|()| found),
                Ok(()) => false,
            };
            let count = ask.count as usize;
            found.extend(
                keys[..count]
                    .iter()
                    .copied()
                    .zip(records[..count].iter().copied()),
            );
            if is_last {
                return Ok(found);
            }
            (position, begun) = (next, true);
        }
    }
}

/// union bpf_attr, of commands on one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// union bpf_attr, of commands on many.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// union bpf_attr, of questions about a descriptor.
#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the addresses in the attributes are of variables that the callers below hold, of the maps' own sizes, which the
    // agent's and our layouts agree in (tests/bpf).
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn on<K: Plain>(map: &OwnedFd, key: &K, value: u64) -> Element {
    Element {
        map: map.as_raw_fd() as u32,
        key: std::ptr::from_ref(key).addr() as u64,
        value,
        ..Element::default()
    }
}

fn update<K: Plain, V: Plain>(map: &OwnedFd, key: &K, value: &V) -> io::Result<()> {
    bpf(
        UPDATE,
        &mut on(map, key, std::ptr::from_ref(value).addr() as u64),
    )
}

fn lookup<K: Plain, V: Plain>(map: &OwnedFd, key: &K) -> Option<V> {
    let mut value = V::default();
    let at = (&raw mut value).addr() as u64;
    bpf(LOOKUP, &mut on(map, key, at)).ok().map(|()| value)
}

/// What is not there is deleted.
fn delete<K: Plain>(map: &OwnedFd, key: &K) {
    let _ = bpf(DELETE, &mut on(map, key, 0));
}

/// Of a map, never used twice since boot.
fn id(map: &OwnedFd) -> io::Result<u32> {
    let mut info = [0_u32; 32]; // the head of struct bpf_map_info: type, id
    let mut ask = Info {
        fd: map.as_raw_fd() as u32,
        length: size_of_val(&info) as u32,
        info: info.as_mut_ptr().addr() as u64,
    };
    bpf(GET_INFO, &mut ask)?;
    Ok(info[1])
}
