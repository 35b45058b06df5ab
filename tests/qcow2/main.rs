//! Disks in qcow2 images, compared with what qemu-img and QEMU make of the same images.

mod caches;
mod chains;
mod concurrent;
mod killed;
mod killed_snapshots;
mod kinds;
mod locks;
mod lost_writes;
mod mapped;
mod matrix;
mod powercut;
mod refusals;
mod repair;
mod resize;
mod snapshot;
mod support;
mod take_over;
mod twin;
mod waiting;
mod writes;
