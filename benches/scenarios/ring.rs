//! A ring in memory that is shared with nobody, full of ordinary read requests.

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

/// A ring and the driver's side of it.
pub(crate) struct Ring {
    memory: SharedMemory,
    ring: SplitRing,
    view: Rc<MemoryView>,
    table: Arc<GuestMemory>,
    iov: IoVecs,
    driver: DriverRing,
}

impl Ring {
    /// A ring whose entries name `BATCH` chains of header, 4 KiB of data and status, over and over: reads of the disk's
    /// first blocks, none of which follows the one before.
    pub(crate) fn new() -> Self {
        let memory = SharedMemory::new(LEN);
        let driver = DriverRing::new(SIZE, DESC, AVAIL, USED);
        for chain in 0..BATCH {
            // The sector; the type, 0, is a read.
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

    /// The same requests in indirect tables, as Linux makes them.
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

    /// The driver makes some chains available, to a device of which it wants to be notified.
    pub(crate) fn offer_reads(&mut self, count: u16) {
        self.driver.set_used_event(&self.memory, self.driver.avail_idx);
        self.driver.advance(&self.memory, count);
    }

    /// The device has answered all that was made available.
    pub(crate) fn is_answered(&self) -> bool {
        self.driver.published(&self.memory) == self.driver.avail_idx
    }

    /// The driver makes a batch of chains available.
    pub(crate) fn offer(&mut self) {
        self.driver.advance(&self.memory, BATCH);
    }

    /// The device takes and walks all of them.
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

    /// The device answers a batch, publishes it once, and the driver asks for the next notification.
    pub(crate) fn complete_all(&mut self) {
        for chain in 0..BATCH {
            self.ring.push_used(chain * 3, 4097);
        }
        assert!(black_box(self.ring.publish()), "the driver wants to know");
        let used_idx = self.driver.published(&self.memory);
        self.driver.set_used_event(&self.memory, used_idx);
    }
}

/// The place of a request's header, status and indirect table; its data follow 4096 bytes later.
fn data(chain: u16) -> usize {
    DATA + usize::from(chain) * 8192
}

fn descs(chain: u16) -> [Desc; 3] {
    let at = data(chain) as u64;
    [readable(at, 16), writable(at + 4096, 4096), writable(at + 16, 1)]
}
