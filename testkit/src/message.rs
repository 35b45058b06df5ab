//! The messages of the vhost-user protocol, byte for byte.

/// Message numbers of the vhost-user protocol.
pub mod msg {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const GET_VRING_BASE_SKIP_DRAIN: u32 = 45;
}

pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const LOG_ALL: u64 = 1 << 26;
pub const VERSION_1: u64 = 1 << 32;
/// Set in the payload of SET_VRING_{KICK,CALL,ERR} when no descriptor comes with the message.
pub const NO_FD: u64 = 1 << 8;

/// The version of the protocol, in a message's flags.
pub const VERSION: u32 = 1;
/// A message flag: the message is an answer.
pub const REPLY: u32 = 1 << 2;
/// A message flag: the sender wants an acknowledgement.
pub const NEED_REPLY: u32 = 1 << 3;
pub const MQ: u64 = 1;
const LOG_SHMFD: u64 = 1 << 1;
pub const REPLY_ACK: u64 = 1 << 3;
const BACKEND_REQ: u64 = 1 << 5;
const CONFIG: u64 = 1 << 9;
const INFLIGHT_SHMFD: u64 = 1 << 12;
const RESET_DEVICE: u64 = 1 << 13;
const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// Rings may stop with requests in flight. Tests do not negotiate this protocol feature unless they say so.
pub const GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
/// Rings stop with requests in flight only if asked by the message of this name.
pub const GET_VRING_BASE_SKIP_DRAIN: u64 = 1 << 23;

/// The protocol features that these tests negotiate.
pub const PROTOCOL: u64 =
    MQ | LOG_SHMFD | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | CONFIGURE_MEM_SLOTS;

/// Returns a whole message. `flags` are added to the version.
pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a small payload");
    [&words(&[request, VERSION | flags, len]), payload].concat()
}

/// Returns the payload of `SET_VRING_{NUM,BASE,ENABLE}` and `GET_VRING_BASE`.
pub fn vring_state(index: u32, num: u32) -> Vec<u8> {
    words(&[index, num])
}

/// Returns the payload of `SET_VRING_ADDR`. The addresses of the descriptors, the used ring and the available ring are
/// the frontend's. `log` is the used ring's guest address if writes to the ring are to be logged.
pub fn vring_addr(index: u32, ring: [u64; 3], log: Option<u64>) -> Vec<u8> {
    let [desc, used, avail] = ring;
    let addresses = [desc, used, avail, log.unwrap_or(0)];
    [
        words(&[index, u32::from(log.is_some())]),
        addresses.map(u64::to_le_bytes).concat(),
    ]
    .concat()
}

/// Returns the payload of `SET_VRING_{KICK,CALL,ERR}`.
pub fn vring_fd(index: u64, has_fd: bool) -> Vec<u8> {
    (index | if has_fd { 0 } else { NO_FD }).to_le_bytes().to_vec()
}

/// Returns the payload of `GET_CONFIG` and `SET_CONFIG`.
pub fn config(offset: u32, bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("a small payload");
    [&words(&[offset, len, 0]), bytes].concat()
}

/// Returns the payload of `SET_LOG_BASE`.
pub fn log_base(size: u64, offset: u64) -> Vec<u8> {
    [size, offset].map(u64::to_le_bytes).concat()
}

/// Returns the payload of `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD`.
pub fn inflight(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let numbers = [queues, queue_size, 0, 0].map(u16::to_le_bytes);
    [[size, offset].map(u64::to_le_bytes).concat(), numbers.concat()].concat()
}

/// Returns the payload of `ADD_MEM_REG` and `REM_MEM_REG`.
pub fn mem_region(region: Region) -> Vec<u8> {
    [&[0; 8], &region.bytes()[..]].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A memory region as it appears in messages.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub guest_addr: u64,
    pub size: u64,
    pub user_addr: u64,
    pub mmap_offset: u64,
}

impl Region {
    pub fn bytes(&self) -> Vec<u8> {
        [self.guest_addr, self.size, self.user_addr, self.mmap_offset]
            .map(u64::to_le_bytes)
            .concat()
    }
}

/// Returns the payload of `SET_MEM_TABLE`.
pub fn mem_table(regions: &[Region]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).expect("a few regions");
    let mut payload = words(&[count, 0]);
    regions.iter().for_each(|region| payload.extend(region.bytes()));
    payload
}
