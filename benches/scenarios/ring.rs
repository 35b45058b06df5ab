//! A ring in memory of its own, full of ordinary read requests.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;

use testkit::memory::SharedMemory;
use testkit::ring::{Desc, DriverRing, indirect, linked, readable, table, writable};
use vhost_user_blk::io::IoVecs;
use vhost_user_blk::memory::{GuestMemory, MemoryView, RegionInfo};
use vhost_user_blk::virtqueue::{Chain, RingAddresses, RingFeatures, SplitRing};

use super::BATCH;

const SIZE: u16 = 256;
const LEN: usize = 1 << 20;
const DESC: usize = 0;
const AVAIL: usize = 0x2000;
const USED: usize = 0x4000;
const DATA: usize = 0x8000;

/// A ring and its driver.
pub(crate) struct Ring {
    memory: SharedMemory,
    ring: SplitRing,
    view: Rc<MemoryView>,
    table: Arc<GuestMemory>,
    iov: IoVecs,
    driver: DriverRing,
}

impl Ring {
    /// Makes a ring whose entries name the same `BATCH` chains over and over. Each chain reads 4 KiB from the start of
    /// the disk and consists of header, data and status. No read continues the previous one.
    pub(crate) fn new() -> Self {
        let memory = SharedMemory::new(LEN);
        let driver = DriverRing::new(SIZE, DESC, AVAIL, USED);
        for chain in 0..BATCH {
            // Only the sector is written: the type is 0 already, which is a read.
            memory.write(data(chain) + 8, &(u64::from(chain ^ 1) * 8).to_le_bytes());
            driver.put_descs(&memory, chain * 3, &linked(chain * 3, &descs(chain)));
        }
        for entry in 0..SIZE {
            memory.store_u16(driver.avail_entry(entry), entry % BATCH * 3);
        }
        let region = RegionInfo {
            guest: 0,
            len: LEN as u64,
            user: 0,
            file_offset: 0,
        };
        let file = memory.file().try_clone().expect("clone the file");
        let table = Arc::new(GuestMemory::map([(region, file)]).expect("map the memory"));
        let ring = SplitRing::new(&table, Self::addresses(), Self::size(), 0, Self::features());
        Self {
            ring: ring.expect("the ring is valid"),
            view: MemoryView::new(Arc::clone(&table)),
            table,
            iov: IoVecs::new(),
            driver,
            memory,
        }
    }

    /// Makes a ring with the same requests in indirect tables, as Linux does.
    pub(crate) fn indirect() -> Self {
        let ring = Self::new();
        for chain in 0..BATCH {
            let (at, table) = (data(chain) + 32, table(&linked(0, &descs(chain))));
            ring.memory.write(at, &table);
            let len = u32::try_from(table.len()).expect("it is short");
            let head = [indirect(at as u64, len)];
            ring.driver.put_descs(&ring.memory, chain * 3, &head);
        }
        ring
    }

    pub(crate) fn table(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.table)
    }

    pub(crate) fn addresses() -> RingAddresses {
        RingAddresses {
            desc: DESC as u64,
            avail: AVAIL as u64,
            used: USED as u64,
        }
    }

    pub(crate) fn size() -> u32 {
        SIZE.into()
    }

    pub(crate) fn features() -> RingFeatures {
        RingFeatures {
            event_idx: true,
            indirect: true,
        }
    }

    /// Makes `count` chains available as the driver, and asks for a notification of the first answer.
    pub(crate) fn offer_reads(&mut self, count: u16) {
        self.driver.set_used_event(&self.memory, self.driver.avail_idx);
        self.driver.advance(&self.memory, count);
    }

    /// Returns whether the device has answered all chains made available.
    pub(crate) fn is_answered(&self) -> bool {
        self.driver.published(&self.memory) == self.driver.avail_idx
    }

    /// Makes a batch of chains available as the driver.
    pub(crate) fn offer(&mut self) {
        self.driver.advance(&self.memory, BATCH);
    }

    /// Takes and walks all available chains as the device.
    pub(crate) fn take_all(&mut self) {
        let mut taken = 0;
        while let Some(head) = self.ring.pop().expect("the ring is in order") {
            self.iov.clear();
            let chain = Chain::walk(&self.ring, &self.view, head, &mut self.iov);
            black_box(chain.expect("the chain is in order"));
            taken += 1;
        }
        assert_eq!(taken, BATCH);
    }

    /// Answers a batch as the device and publishes it once. Then asks for the next notification as the driver.
    pub(crate) fn complete_all(&mut self) {
        for chain in 0..BATCH {
            self.ring.push_used(chain * 3, 4097);
        }
        assert!(black_box(self.ring.publish()), "the driver wants to know");
        let used_idx = self.driver.published(&self.memory);
        self.driver.set_used_event(&self.memory, used_idx);
    }
}

/// Returns the offset of a request's header, status and indirect table. The request's data lie 4096 bytes later.
fn data(chain: u16) -> usize {
    DATA + usize::from(chain) * 8192
}

fn descs(chain: u16) -> [Desc; 3] {
    let at = data(chain) as u64;
    [readable(at, 16), writable(at + 4096, 4096), writable(at + 16, 1)]
}
