//! The statistics of the disks and IOThreads that exist, for threads that show them.
//!
//! The main thread adds and removes. Readers take no lock that serving a disk needs, and cost the disks nothing: they
//! read what the IOThreads have written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::blk::device::{BlkDevice, DiskFacts};
use crate::blk::stats::{DiskReport, QueueStats};
use crate::engine::Plan;
use crate::iothread::IoThreadFigures;

/// The disks and IOThreads. Clones share one list. Any thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster(Arc<Mutex<Lists>>);

#[derive(Debug, Default)]
struct Lists {
    disks: BTreeMap<String, Arc<DiskFigures>>,
    /// Each thread owns its figures.
    iothreads: BTreeMap<String, Weak<IoThreadFigures>>,
}

/// The statistics of a disk. They keep nothing of the disk itself alive.
#[derive(Debug)]
pub(super) struct DiskFigures {
    id: String,
    name: String,
    /// The image and the engine at the start.
    image: String,
    engine: Plan,
    queues: Vec<Arc<QueueStats>>,
    facts: Arc<DiskFacts>,
}

impl DiskFigures {
    pub(super) fn new(id: &str, device: &BlkDevice) -> Self {
        Self {
            id: id.to_owned(),
            name: device.state().name.clone(),
            image: device.state().below.view().node.path().display().to_string(),
            engine: device.engine(),
            queues: device.stats().to_vec(),
            facts: Arc::clone(&device.state().facts),
        }
    }

    /// Returns the id of the export.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the name of the disk in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name of the image that the disk uses now.
    pub(super) fn image(&self) -> String {
        self.facts.image().unwrap_or_else(|| self.image.clone())
    }

    pub(super) fn engine(&self) -> Plan {
        self.facts.engine().unwrap_or(self.engine)
    }

    pub(super) fn facts(&self) -> &DiskFacts {
        &self.facts
    }

    /// Reads all counters.
    pub(super) fn report(&self) -> DiskReport {
        DiskReport::new(&self.name, self.engine(), &self.queues)
    }
}

impl Roster {
    pub(super) fn add_disk(&self, disk: &Arc<DiskFigures>) {
        self.lock().disks.insert(disk.id.clone(), Arc::clone(disk));
    }

    pub(super) fn remove_disk(&self, id: &str) {
        self.lock().disks.remove(id);
    }

    /// Adds an IOThread. It is in the list as long as it runs, and until another one gets its id.
    pub(super) fn add_iothread(&self, id: &str, figures: &Arc<IoThreadFigures>) {
        let iothreads = &mut self.lock().iothreads;
        iothreads.retain(|_, figures| figures.strong_count() > 0);
        iothreads.insert(id.to_owned(), Arc::downgrade(figures));
    }

    /// Returns the disks, ordered by id.
    pub(super) fn disks(&self) -> Vec<Arc<DiskFigures>> {
        self.lock().disks.values().cloned().collect()
    }

    /// Returns the IOThreads that run, ordered by id.
    pub(super) fn iothreads(&self) -> Vec<(String, Arc<IoThreadFigures>)> {
        let lists = self.lock();
        let running = |(id, figures): (&String, &Weak<_>)| Some((id.clone(), figures.upgrade()?));
        lists.iothreads.iter().filter_map(running).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        // Consistent even after a panic, because each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
