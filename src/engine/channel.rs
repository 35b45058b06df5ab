//! Channels: the path of a queue's requests to a disk, on one IOThread.

use std::rc::Rc;
use std::sync::Arc;

use super::detect_zeroes::DetectZeroes;
use super::fault::Faults;
use super::fault::channel::{FaultyChannel, Submit};
use super::file::channel::FileChannel;
use super::file::pins::PinnedMemory;
use super::nbd::NbdChannel;
use super::null::{NullAioChannel, NullCoChannel};
use super::qcow2::Qcow2Channel;
use super::rbd::RbdChannel;
use super::throttle::ThrottledChannel;
use crate::aio::AioContext;
use crate::io::{Completer, Requests};
use crate::memory::GuestMemory;
use crate::throttle::{Member, Waits};

/// A channel to a disk. IOThread only. Each queue has its own. The channels of a disk on one IOThread are siblings,
/// which share expensive resources.
#[derive(Debug)]
pub struct Channel(Kind);

/// A channel with or without limits.
#[derive(Debug)]
enum Kind {
    Unlimited(Unlimited),
    Throttled(ThrottledChannel<Unlimited>),
}

/// A channel with or without faults.
#[derive(Debug)]
enum Unlimited {
    Plain(Plain),
    Faulty(FaultyChannel<Plain>),
}

/// The kinds of plain channels.
#[derive(Debug)]
enum Plain {
    File(FileChannel),
    NullCo(NullCoChannel),
    NullAio(NullAioChannel),
    Nbd(NbdChannel),
    Rbd(RbdChannel),
    Qcow2(Qcow2Channel),
}

impl From<Plain> for Channel {
    fn from(plain: Plain) -> Self {
        Self(Kind::Unlimited(Unlimited::Plain(plain)))
    }
}

impl From<FileChannel> for Channel {
    fn from(channel: FileChannel) -> Self {
        Plain::File(channel).into()
    }
}

impl From<NullCoChannel> for Channel {
    fn from(channel: NullCoChannel) -> Self {
        Plain::NullCo(channel).into()
    }
}

impl From<NullAioChannel> for Channel {
    fn from(channel: NullAioChannel) -> Self {
        Plain::NullAio(channel).into()
    }
}

impl From<NbdChannel> for Channel {
    fn from(channel: NbdChannel) -> Self {
        Plain::Nbd(channel).into()
    }
}

impl From<RbdChannel> for Channel {
    fn from(channel: RbdChannel) -> Self {
        Plain::Rbd(channel).into()
    }
}

impl From<Qcow2Channel> for Channel {
    fn from(channel: Qcow2Channel) -> Self {
        Plain::Qcow2(channel).into()
    }
}

impl Channel {
    /// Starts every request of the batch, and empties the list. Each request comes back to `completer` exactly once,
    /// either during this call or later, for which the caller must keep the completer. Call this inside a defer scope.
    ///
    /// Returns the number of requests that were merged into an earlier one.
    pub fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        match &self.0 {
            Kind::Unlimited(unlimited) => unlimited.submit(batch, completer),
            Kind::Throttled(throttled) => throttled.submit(batch, completer),
        }
    }

    /// Makes requests on this channel, and on siblings made from it, wait until the throttle group of `member` admits
    /// them.
    #[must_use]
    pub fn with_limits(self, ctx: &AioContext, member: &Arc<Member>) -> Self {
        match self.0 {
            Kind::Unlimited(unlimited) => {
                Self(Kind::Throttled(ThrottledChannel::new(ctx, unlimited, member)))
            }
            throttled @ Kind::Throttled(_) => Self(throttled),
        }
    }

    /// Starts all requests that wait for their throttle group, because a stopping ring waits for them.
    pub fn release_waiting(&self) {
        if let Kind::Throttled(throttled) = &self.0 {
            throttled.release();
        }
    }

    /// Ends this channel's requests with ECANCELED after a while, if the server of their disk does not answer. Call this
    /// when a stopping ring waits for them.
    pub fn give_up_soon(&self) {
        match self.plain() {
            Plain::Nbd(nbd) => nbd.give_up_soon(),
            Plain::Rbd(rbd) => rbd.give_up_soon(),
            Plain::File(_) | Plain::Qcow2(_) | Plain::NullCo(_) | Plain::NullAio(_) => {}
        }
    }

    /// Registers guest memory with the kernel, if the disk's engine was asked to. Ends when the value is dropped.
    pub(crate) fn pin(&self, memory: &GuestMemory) -> Option<PinnedMemory> {
        match self.plain() {
            Plain::File(file) => file.pin(memory),
            _ => None,
        }
    }

    /// Returns whether requests to the disk from this IOThread wait for another process or machine.
    pub(crate) fn waits_for_others(&self) -> bool {
        match self.plain() {
            Plain::Nbd(nbd) => nbd.waits_for_others(),
            Plain::Rbd(rbd) => rbd.waits_for_others(),
            Plain::File(_) | Plain::Qcow2(_) | Plain::NullCo(_) | Plain::NullAio(_) => false,
        }
    }

    /// Returns whether the IOThread executes most batches together with a worker. Then one long batch takes less time
    /// than several short ones.
    pub(crate) fn shares(&self) -> bool {
        match self.plain() {
            Plain::File(file) => file.shares(),
            Plain::Qcow2(qcow2) => qcow2.shares(),
            Plain::Nbd(_) | Plain::Rbd(_) | Plain::NullCo(_) | Plain::NullAio(_) => false,
        }
    }

    /// Returns the channel below limits and faults.
    fn plain(&self) -> &Plain {
        let unlimited = match &self.0 {
            Kind::Unlimited(unlimited) => unlimited,
            Kind::Throttled(throttled) => throttled.inner(),
        };
        match unlimited {
            Unlimited::Plain(plain) => plain,
            Unlimited::Faulty(faulty) => faulty.inner(),
        }
    }

    /// Creates another channel to the same disk, for another queue of the same IOThread.
    #[must_use]
    pub fn sibling(&self) -> Self {
        self.counting_sibling(&Arc::default())
    }

    /// Creates a [`sibling`](Self::sibling) that counts the requests waiting for their throttle group in `waits`.
    #[must_use]
    pub fn counting_sibling(&self, waits: &Arc<Waits>) -> Self {
        Self(match &self.0 {
            Kind::Unlimited(unlimited) => Kind::Unlimited(unlimited.sibling()),
            Kind::Throttled(throttled) => {
                Kind::Throttled(throttled.with(throttled.inner().sibling(), Arc::clone(waits)))
            }
        })
    }

    /// Injects `faults` into requests on this channel, and on siblings made from it. `block` is the disk's logical
    /// block size, and `start` its first byte in the node below.
    #[must_use]
    pub fn with_faults(self, ctx: &AioContext, faults: Arc<Faults>, block: u32, start: u64) -> Self {
        match self.0 {
            Kind::Unlimited(Unlimited::Plain(plain)) => {
                let faulty = FaultyChannel::new(ctx, plain, faults, (block, start));
                Self(Kind::Unlimited(Unlimited::Faulty(faulty)))
            }
            other => Self(other),
        }
    }

    /// Detects writes of zeroes on this channel, and on siblings made from it. Call this before faults and limits are
    /// added. A null disk ignores it.
    #[must_use]
    pub fn with_zero_detection(self, zeroes: DetectZeroes) -> Self {
        match self.0 {
            Kind::Unlimited(Unlimited::Plain(Plain::File(file))) => file.with_zero_detection(zeroes).into(),
            Kind::Unlimited(Unlimited::Plain(Plain::Nbd(nbd))) => nbd.with_zero_detection(zeroes).into(),
            Kind::Unlimited(Unlimited::Plain(Plain::Rbd(rbd))) => rbd.with_zero_detection(zeroes).into(),
            Kind::Unlimited(Unlimited::Plain(Plain::Qcow2(qcow2))) => {
                qcow2.with_zero_detection(zeroes).into()
            }
            other => Self(other),
        }
    }

    /// Returns whether a worker is still helping with a batch. For tests.
    #[doc(hidden)]
    pub fn is_sharing(&self) -> bool {
        match &self.0 {
            Kind::Unlimited(Unlimited::Plain(Plain::File(file))) => file.is_sharing(),
            Kind::Unlimited(Unlimited::Plain(Plain::Qcow2(qcow2))) => qcow2.is_sharing(),
            _ => false,
        }
    }
}

impl Unlimited {
    fn sibling(&self) -> Self {
        match self {
            Self::Plain(plain) => Self::Plain(plain.sibling()),
            Self::Faulty(faulty) => Self::Faulty(faulty.with(faulty.inner().sibling())),
        }
    }
}

impl Submit for Unlimited {
    #[inline]
    fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        match self {
            Self::Plain(plain) => plain.submit(batch, completer),
            Self::Faulty(faulty) => faulty.submit(batch, completer),
        }
    }
}

impl Plain {
    fn sibling(&self) -> Self {
        match self {
            Self::File(channel) => Self::File(channel.sibling()),
            Self::NullCo(channel) => Self::NullCo(channel.sibling()),
            Self::NullAio(channel) => Self::NullAio(channel.sibling()),
            Self::Nbd(channel) => Self::Nbd(channel.sibling()),
            Self::Rbd(channel) => Self::Rbd(channel.sibling()),
            Self::Qcow2(channel) => Self::Qcow2(channel.sibling()),
        }
    }
}

impl Submit for Plain {
    fn submit(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) -> usize {
        match self {
            Self::File(channel) => return channel.submit(batch, completer),
            Self::NullCo(channel) => channel.submit(batch, completer),
            Self::NullAio(channel) => channel.submit(batch, completer),
            Self::Nbd(channel) => channel.submit(batch, completer),
            Self::Rbd(channel) => channel.submit(batch, completer),
            Self::Qcow2(channel) => return channel.submit(batch, completer),
        }
        0
    }
}
