//! From a step to what the frontend says or does.

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};

use vhost_user_blk_fuzz::chains::AVAIL;
use vhost_user_blk_fuzz::guest::REGIONS;

use crate::frontend::{Frontend, NEED_REPLY, of_queue, region_bytes};
use crate::steps::{Descriptor, FileMessage, Odd, Place, StateMessage, Step};

impl Frontend<'_> {
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Start(start) => self.start(start),
            Step::Request(queue, request) => self.request((*queue).into(), request),
            Step::Kick(queue) => {
                // A kick eventfd is non-blocking, and full at worst.
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
                    StateMessage::Num => 8,
                    StateMessage::Base => 10,
                    StateMessage::GetBase => 11,
                    StateMessage::Enable => 18,
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
                    FileMessage::Kick => 12,
                    FileMessage::Call => 13,
                    FileMessage::Err => 14,
                };
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                self.file(request, queue % 3, file.as_ref().map(AsRawFd::as_raw_fd));
            }
            other => self.step_device(other),
        }
    }

    /// Messages that concern the whole device.
    fn step_device(&mut self, step: &Step) {
        match step {
            Step::Features(features) => self.send(2, NEED_REPLY, &features.to_le_bytes(), &[]),
            Step::ProtocolFeatures(features) => self.send(16, 0, &features.to_le_bytes(), &[]),
            Step::Table(regions) => self.table(regions),
            Step::Add(index, odd) => {
                let (region, file) = self.region(*index, *odd);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(
                    37,
                    NEED_REPLY,
                    &[&[0; 8], &region_bytes(region)[..]].concat(),
                    &fds,
                );
            }
            Step::Remove(index) => {
                let (region, _) = self.region(*index, Odd::Nothing);
                self.send(
                    38,
                    NEED_REPLY,
                    &[&[0; 8], &region_bytes(region)[..]].concat(),
                    &[],
                );
            }
            Step::GetConfig(offset, len) => {
                let (offset, len) = (u32::from(*offset), u32::from(len % 300));
                let header = [offset, len, 0].map(u32::to_le_bytes).concat();
                self.send(24, 0, &[header, vec![0; len as usize]].concat(), &[]);
            }
            Step::SetConfig(offset, bytes) => {
                let bytes = &bytes[..bytes.len().min(300)];
                let header = [u32::from(*offset), bytes.len() as u32, 0]
                    .map(u32::to_le_bytes)
                    .concat();
                self.send(25, NEED_REPLY, &[&header, bytes].concat(), &[]);
            }
            Step::Log(size, offset, file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(6, 0, &[*size, *offset].map(u64::to_le_bytes).concat(), &fds);
            }
            Step::GetInflight(queues, size) => self.get_inflight(*queues, *size),
            Step::SetInflight(patches) => self.set_inflight(patches),
            Step::SetAnyInflight(sizes, queues, file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                let payload = [
                    sizes.map(u64::to_le_bytes).concat(),
                    queues.map(u16::to_le_bytes).concat(),
                    vec![0; 4],
                ];
                self.send(32, NEED_REPLY, &payload.concat(), &fds);
            }
            Step::Channel(file) => {
                self.odd_memory |= matches!(file, Descriptor::Guest);
                let file = file.open(&self.guest);
                let fds: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
                self.send(21, NEED_REPLY, &[], &fds);
            }
            Step::Reset(owner) => self.send(if *owner { 4 } else { 34 }, NEED_REPLY, &[], &[]),
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
