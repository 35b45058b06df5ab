//! Performs the steps of a session.

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};

use testkit::message::{self, NEED_REPLY, msg};
use vhost_user_blk_fuzz::chains::AVAIL;
use vhost_user_blk_fuzz::guest::REGIONS;

use crate::frontend::{Frontend, in_message, of_queue};
use crate::steps::{Descriptor, FileMessage, Odd, Place, StateMessage, Step};

impl Frontend<'_> {
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Start(start) => self.start(start),
            Step::Request(queue, request) => self.request((*queue).into(), request),
            Step::Kick(queue) => {
                // The kick eventfd does not block. A write fails only if its counter is full.
                let _ = (&self.kicks[usize::from(*queue)]).write(&1u64.to_ne_bytes());
            }
            Step::Avail(queue, idx, head) => {
                let avail = of_queue((*queue).into(), AVAIL);
                self.guest.write(avail + 2, &idx.to_le_bytes());
                self.guest.write(avail + 4, &head.to_le_bytes());
            }
            Step::UsedEvent(queue, event) => {
                let queue = usize::from(*queue);
                let at = of_queue(queue, AVAIL) + 4 + 2 * u64::from(self.sizes[queue]);
                self.guest.write(at, &event.to_le_bytes());
            }
            Step::Poke(at, bytes) => self.guest.write(at.get(), bytes),
            Step::Barrier => self.barrier(),
            Step::Settle(queue) => self.settle((*queue).into()),
            Step::State(message, queue, number) => {
                let request = match message {
                    StateMessage::Num => msg::SET_VRING_NUM,
                    StateMessage::Base => msg::SET_VRING_BASE,
                    StateMessage::GetBase => msg::GET_VRING_BASE,
                    StateMessage::Enable => msg::SET_VRING_ENABLE,
                };
                self.state(request, u32::from(queue % 3), *number);
            }
            Step::Addresses { queue, ring, log } => {
                let ring = ring.map(|place| match place {
                    Place::In(i, at) => REGIONS[usize::from(i) % REGIONS.len()].user + u64::from(at),
                    Place::Any(at) => at,
                });
                self.addresses(u32::from(queue % 3), ring, *log);
            }
            Step::File(message, queue, file) => {
                let request = match message {
                    FileMessage::Kick => msg::SET_VRING_KICK,
                    FileMessage::Call => msg::SET_VRING_CALL,
                    FileMessage::Err => msg::SET_VRING_ERR,
                };
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                self.file(request, queue % 3, file.as_ref().map(AsRawFd::as_raw_fd));
            }
            other => self.step_device(other),
        }
    }

    /// Performs a step that concerns the whole device.
    fn step_device(&mut self, step: &Step) {
        match step {
            Step::Features(features) => {
                self.send(msg::SET_FEATURES, NEED_REPLY, &features.to_le_bytes(), &[])
            }
            Step::ProtocolFeatures(features) => {
                self.send(msg::SET_PROTOCOL_FEATURES, 0, &features.to_le_bytes(), &[])
            }
            Step::Table(regions) => self.table(regions),
            Step::Add(index, odd) => {
                let (region, file) = self.region(*index, *odd);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                let payload = message::mem_region(in_message(region));
                self.send(msg::ADD_MEM_REG, NEED_REPLY, &payload, &fds);
            }
            Step::Remove(index) => {
                let (region, _) = self.region(*index, Odd::Nothing);
                let payload = message::mem_region(in_message(region));
                self.send(msg::REM_MEM_REG, NEED_REPLY, &payload, &[]);
            }
            Step::GetConfig(offset, len) => {
                let space = vec![0; usize::from(len % 300)];
                let payload = message::config((*offset).into(), &space);
                self.send(msg::GET_CONFIG, 0, &payload, &[]);
            }
            Step::SetConfig(offset, bytes) => {
                let bytes = &bytes[..bytes.len().min(300)];
                let payload = message::config((*offset).into(), bytes);
                self.send(msg::SET_CONFIG, NEED_REPLY, &payload, &[]);
            }
            Step::Log(size, offset, file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(msg::SET_LOG_BASE, 0, &message::log_base(*size, *offset), &fds);
            }
            Step::GetInflight(queues, size) => self.get_inflight(*queues, *size),
            Step::SetInflight(patches) => self.set_inflight(patches),
            Step::SetAnyInflight(sizes, queues, file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                let ([size, offset], [queues, queue_size]) = (*sizes, *queues);
                let payload = message::inflight(size, offset, queues, queue_size);
                self.send(msg::SET_INFLIGHT_FD, NEED_REPLY, &payload, &fds);
            }
            Step::Channel(file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(msg::SET_BACKEND_REQ_FD, NEED_REPLY, &[], &fds);
            }
            Step::Reset(owner) => {
                let request = if *owner {
                    msg::RESET_OWNER
                } else {
                    msg::RESET_DEVICE
                };
                self.send(request, NEED_REPLY, &[], &[]);
            }
            Step::Resize(blocks) => {
                self.resized = true;
                let len = u64::from(*blocks) * 4096;
                self.backend.disk.set_len(len).expect("size the disk");
                self.resizer.refresh().expect("the IOThread runs");
            }
            Step::Raw {
                request,
                flags,
                len,
                payload,
                files,
            } => self.raw(*request, *flags, *len, payload, files),
            Step::Again => {
                self.end();
                let (client, resizer) = self.backend.connect();
                (self.client, self.resizer, self.whole) = (Some(client), resizer, true);
            }
            _ => {}
        }
    }
}
