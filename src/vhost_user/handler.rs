//! Maps the `vhost` crate's messages to the session.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::error::{SessionError, chain};
use super::region_reply;
use super::session::{Session, Suspends};
use super::skip_drain;
use crate::blk::device::DeviceState;
use crate::memory::{MAX_REGIONS, RegionInfo};
use crate::virtqueue::{RegionLayout, RingAddresses};

/// The conditions under which the crate answers a message that asks for an acknowledgement.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answers {
    /// Protocol features were offered.
    offered: bool,
    /// REPLY_ACK was accepted.
    accepted: bool,
}

impl Answers {
    /// Returns whether protocol features were offered.
    pub(super) fn is_offered(self) -> bool {
        self.offered
    }

    pub(super) fn are_given(self) -> bool {
        self.offered && self.accepted
    }
}

/// Answers one connection's messages.
#[derive(Debug)]
pub(super) struct Handler<'a> {
    pub(super) session: Session<'a>,
    /// The disk, for log lines.
    disk: Arc<DeviceState>,
    /// A request for data was refused. The protocol has no error reply for that, so the connection must end.
    unanswered: bool,
    /// Whether the crate answers messages that ask for an acknowledgement.
    pub(super) answers: Answers,
    /// The socket that came with the current message, which the crate does not expose.
    pub(super) offered: Option<OwnedFd>,
    /// The connection, for replies that the crate does not send.
    socket: &'a UnixStream,
    /// The current message was replied to here. The crate was given an error, so that it does not reply too.
    pub(super) replied: bool,
    /// The protocol features that the frontend has accepted.
    pub(super) protocol_features: Option<u64>,
}

impl<'a> Handler<'a> {
    /// Answers the messages of a connection that has negotiated nothing yet.
    pub(super) fn new(mut session: Session<'a>, socket: &'a UnixStream) -> Self {
        Self {
            disk: Arc::clone(session.device().state()),
            session,
            unanswered: false,
            answers: Answers::default(),
            offered: None,
            socket,
            replied: false,
            protocol_features: None,
        }
    }

    /// True if the refused message must end the connection.
    pub(super) fn must_end(&self) -> bool {
        self.unanswered || self.session.failed
    }

    /// Reads and answers GET_VRING_BASE_SKIP_DRAIN.
    ///
    /// # Errors
    /// It is refused. There is no error reply for it, so the connection must end.
    pub(super) fn answer_skip_drain(&mut self) -> Result<()> {
        let index = skip_drain::read(self.socket).map_err(Error::SocketError)?;
        let base = self.session.get_vring_base_skip_drain(index);
        let base = ack(&self.disk, "GET_VRING_BASE_SKIP_DRAIN", base)?;
        skip_drain::reply(self.socket, index, base).map_err(Error::SocketError)
    }
}

fn refuse(disk: &DeviceState, message: &'static str, error: &SessionError) -> Error {
    // The text is part of the key: different defects in the same message are all logged.
    let text = chain(error);
    if let Some(suppressed) = disk.log.pass("refused", format_args!("{message} {text}")) {
        tracing::warn!(disk = disk.name, message, error = %text, suppressed, "vhost-user message refused");
    }
    Error::ReqHandlerError(io::Error::other(text))
}

/// Logs an error and converts it for the crate, which answers the message.
fn ack<T>(
    disk: &DeviceState,
    message: &'static str,
    result: std::result::Result<T, SessionError>,
) -> Result<T> {
    result.map_err(|error| refuse(disk, message, &error))
}

fn unsupported<T>(disk: &DeviceState, message: &'static str) -> Result<T> {
    Err(refuse(disk, message, &SessionError::Unsupported))
}

fn region(guest: u64, len: u64, user: u64, file_offset: u64) -> RegionInfo {
    RegionInfo {
        guest,
        len,
        user,
        file_offset,
    }
}

impl VhostUserBackendReqHandlerMut for Handler<'_> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        ack(&self.disk, "RESET_OWNER", self.session.disable_all())
    }

    fn reset_device(&mut self) -> Result<()> {
        ack(&self.disk, "RESET_DEVICE", self.session.reset_device())
    }

    fn get_features(&mut self) -> Result<u64> {
        self.answers.offered = true;
        Ok(self.session.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        ack(&self.disk, "SET_FEATURES", self.session.set_features(features))
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        use VhostUserProtocolFeatures as F;
        Ok(F::MQ
            | F::BACKEND_REQ
            | F::CONFIG
            | F::CONFIGURE_MEM_SLOTS
            | F::GET_VRING_BASE_INFLIGHT
            | F::INFLIGHT_SHMFD
            | F::LOG_SHMFD
            | F::RESET_DEVICE
            | F::REPLY_ACK
            | F::from_bits_retain(skip_drain::FEATURE))
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.answers.accepted = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        let unknown = features & !self.get_protocol_features()?.bits();
        if unknown != 0 {
            return Err(refuse(
                &self.disk,
                "SET_PROTOCOL_FEATURES",
                &SessionError::BadFeatures(unknown),
            ));
        }
        let suspends =
            VhostUserProtocolFeatures::GET_VRING_BASE_INFLIGHT | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        self.protocol_features = Some(features);
        self.session.suspends = match features & suspends.bits() == suspends.bits() {
            false => Suspends::Never,
            true if features & skip_drain::FEATURE != 0 => Suspends::WhenAsked,
            true => Suspends::Always,
        };
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.session.device().config().num_queues))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = table
            .iter()
            .map(|r| region(r.guest_phys_addr, r.memory_size, r.user_addr, r.mmap_offset));
        ack(
            &self.disk,
            "SET_MEM_TABLE",
            self.session.set_memory_table(regions, files),
        )
        .map(|()| None)
    }

    fn add_mem_region(
        &mut self,
        r: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let info = region(r.guest_phys_addr, r.memory_size, r.user_addr, r.mmap_offset);
        ack(&self.disk, "ADD_MEM_REG", self.session.add_region(info, &file)).map(|()| None)
    }

    fn remove_mem_region(&mut self, r: &VhostUserSingleMemoryRegion) -> Result<()> {
        let info = region(r.guest_phys_addr, r.memory_size, r.user_addr, r.mmap_offset);
        ack(&self.disk, "REM_MEM_REG", self.session.remove_region(info))
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        ack(
            &self.disk,
            "SET_VRING_NUM",
            self.session.set_vring_num(index, size),
        )
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        let log = Some(log).filter(|_| flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG));
        let addresses = RingAddresses { desc, avail, used };
        ack(
            &self.disk,
            "SET_VRING_ADDR",
            self.session.set_vring_addr(index, addresses, log),
        )
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        ack(
            &self.disk,
            "SET_VRING_BASE",
            self.session.set_vring_base(index, base),
        )
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = ack(&self.disk, "GET_VRING_BASE", self.session.get_vring_base(index));
        self.unanswered |= base.is_err();
        Ok(VhostUserVringState::new(index, base?.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        ack(
            &self.disk,
            "SET_VRING_KICK",
            self.session.set_vring_kick(index.into(), file),
        )
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        ack(
            &self.disk,
            "SET_VRING_CALL",
            self.session.set_vring_call(index.into(), file),
        )
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        ack(
            &self.disk,
            "SET_VRING_ERR",
            self.session.set_vring_err(index.into(), file),
        )
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        ack(
            &self.disk,
            "SET_VRING_ENABLE",
            self.session.set_vring_enable(index, enable),
        )
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        ack(
            &self.disk,
            "GET_CONFIG",
            self.session.read_config(offset, size as usize),
        )
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        ack(&self.disk, "SET_CONFIG", self.session.write_config(offset, data))
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {
        self.session.channel().set(self.offered.take(), &self.disk.name);
    }

    fn set_gpu_socket(&mut self, _socket: GpuBackend) -> Result<()> {
        unsupported(&self.disk, "GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported(&self.disk, "GET_SHARED_OBJECT")
    }

    /// Sends the reply itself, see [`region_reply`].
    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let created = self.session.create_inflight(asked.num_queues, asked.queue_size);
        self.unanswered |= created.is_err();
        let (layout, file) = ack(&self.disk, "GET_INFLIGHT_FD", created)?;
        region_reply::send(self.socket, layout, &file).map_err(Error::SocketError)?;
        self.replied = true;
        Err(Error::ReqHandlerError(io::ErrorKind::Other.into()))
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Result<()> {
        let layout = RegionLayout {
            size: kept.mmap_size,
            offset: kept.mmap_offset,
            queues: kept.num_queues,
            queue_size: kept.queue_size,
        };
        ack(
            &self.disk,
            "SET_INFLIGHT_FD",
            self.session.set_inflight(layout, &file),
        )
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported(&self.disk, "SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported(&self.disk, "CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.unanswered = true;
        unsupported(&self.disk, "GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let set = self.session.set_log(&file, log.mmap_offset, log.mmap_size);
        self.unanswered |= set.is_err();
        ack(&self.disk, "SET_LOG_BASE", set)
    }
}
