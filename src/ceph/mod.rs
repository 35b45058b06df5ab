//! Disks in Ceph clusters (RBD), by librbd.
//!
//! librbd has threads of its own for each cluster, and talks to every OSD. So its threads have a sandbox of
//! their own: [`Threads`] is a thread that confines itself before it connects, and everything that librbd creates later
//! inherits that. Files (configuration and keys) are read before, by the thread that calls [`Cluster::configure`].
//!
//! Calls that may wait for the cluster run on threads of [`Threads`], and their callers wait with a limit. Only
//! [`Call::start`] is for IOThreads: it does not wait.

mod api;
mod cluster;
mod end;
mod error;
mod few_threads;
mod image;
mod image_name;
mod monitors;
mod operation;
mod threads;

pub use cluster::{Cluster, ClusterOptions, Key};
pub use end::end_process;
pub use error::Error;
pub use image::Image;
pub use image_name::ImageName;
pub use operation::{Call, Completion, Operation};
pub use threads::Threads;
