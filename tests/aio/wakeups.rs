//! Peers that leave work at the worst moments: whenever the context is about to change what it asks them for.
//!
//! A peer only notifies of work if it was asked to. So the context must find all other work by itself before it blocks.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use testkit::random::Random;
use vhost_user_blk::aio::{AioContext, EventSet, FdHandler, Poller, PollerHandle, RemoteWork, Timer};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A wait without events ends after this time, which is shorter than the longest window.
const WAIT: Duration = Duration::from_millis(1);
/// The longest polling window. Idle peers are polled for at least eight times as long.
const WINDOW: Duration = Duration::from_millis(6);
/// The longest time until the context no longer polls an idle peer. A busy machine may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A driver and its ring.
struct Peer {
    random: Rc<RefCell<Random>>,
    /// Requests that were not taken.
    left: Cell<u32>,
    taken: Cell<u32>,
    /// The device asks for kicks.
    wanted: Cell<bool>,
    /// A kick that the device has not seen.
    kicked: Cell<bool>,
    polled: Cell<bool>,
    /// The peer adds a request whenever it is polled.
    is_busy: Cell<bool>,
    ends: Cell<u32>,
    kick: EventFd,
    remote: RemoteWork,
    poller: RefCell<Option<PollerHandle>>,
}

impl Peer {
    fn new(ctx: &AioContext, random: &Rc<RefCell<Random>>) -> (Rc<Self>, FdHandler) {
        let peer = Rc::new(Self {
            random: Rc::clone(random),
            left: Cell::new(0),
            taken: Cell::new(0),
            wanted: Cell::new(true),
            kicked: Cell::new(false),
            polled: Cell::new(false),
            is_busy: Cell::new(false),
            ends: Cell::new(0),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            remote: ctx.remote_work(),
            poller: RefCell::default(),
        });
        let poller = ctx.add_poller(Rc::clone(&peer) as _);
        peer.poller.replace(Some(poller));
        let kicked = Rc::clone(&peer);
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let handler = ctx.add_fd(peer.kick.try_clone().unwrap(), events, move |_| kicked.kicked());
        (peer, handler.unwrap())
    }

    /// A moment at which the peer may add a request.
    fn at(&self) {
        if self.random.borrow_mut().below(3) == 0 {
            self.add();
        }
    }

    fn add(&self) {
        self.left.set(self.left.get() + 1);
        if self.wanted.get() {
            self.kicked.set(true);
            self.kick.write(1).unwrap();
        }
    }

    fn take(&self) -> bool {
        let left = self.left.take();
        self.taken.set(self.taken.get() + left);
        left > 0
    }

    /// Asks for kicks, and looks once more.
    fn ask_for_kicks(&self) -> bool {
        self.at();
        self.wanted.set(true);
        self.at();
        self.left.get() > 0
    }

    fn visit(&self) -> bool {
        let mut found = self.take();
        if found && !self.polled.get() {
            self.at();
        }
        while !self.polled.get() && self.ask_for_kicks() {
            found |= self.take();
        }
        found
    }

    fn kicked(&self) {
        self.kicked.set(false);
        if let Some(poller) = &*self.poller.borrow() {
            poller.wake();
        }
        self.wanted.set(false);
        self.visit();
    }

    /// Returns whether the context has to find the work by itself.
    fn is_left_alone(&self) -> bool {
        self.left.get() > 0 && !self.kicked.get()
    }
}

impl Poller for Peer {
    fn poll(&self) -> bool {
        if self.is_busy.get() {
            self.add();
        }
        self.left.get() > 0 && self.visit()
    }

    fn poll_begin(&self) {
        self.at();
        self.polled.set(true);
        self.wanted.set(false);
        self.at();
    }

    fn poll_end(&self) -> bool {
        self.ends.set(self.ends.get() + 1);
        self.polled.set(false);
        self.ask_for_kicks()
    }

    fn waits_for_others(&self) -> bool {
        self.remote.waits()
    }
}

struct Rig {
    ctx: AioContext,
    peers: Vec<Rc<Peer>>,
    _kicks: Vec<FdHandler>,
    timer: Timer,
    /// The timer has fired: nothing else has ended the wait.
    fired: Rc<Cell<bool>>,
    random: Rc<RefCell<Random>>,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let ctx = AioContext::new().unwrap();
        ctx.poll_on_crowded_cpus();
        let random = Rc::new(RefCell::new(Random::new(seed)));
        let (peers, kicks) = (0..4).map(|_| Peer::new(&ctx, &random)).unzip();
        let fired = Rc::<Cell<bool>>::default();
        let fire = Rc::clone(&fired);
        let timer = ctx.timer(move || fire.set(true));
        Self {
            ctx,
            peers,
            _kicks: kicks,
            timer,
            fired,
            random,
        }
    }

    fn below(&self, bound: usize) -> usize {
        self.random.borrow_mut().below(bound)
    }

    /// Makes a pass. It must not block while there is work that it has to find by itself.
    fn pass(&self) {
        let alone: Vec<&Rc<Peer>> = self.peers.iter().filter(|peer| peer.is_left_alone()).collect();
        let taken: Vec<u32> = alone.iter().map(|peer| peer.taken.get()).collect();
        self.fired.set(false);
        self.timer.arm_in(WAIT);
        self.ctx.poll(true);
        if !self.fired.get() {
            return;
        }
        for (peer, taken) in alone.iter().zip(taken) {
            assert!(
                !peer.is_left_alone() || peer.taken.get() > taken,
                "the context has blocked beside work: polled {}, kicks wanted {}",
                peer.polled.get(),
                peer.wanted.get()
            );
        }
    }

    /// Polls one busy peer until the context stops polling an idle one. Then chance decides whether the next wait polls.
    fn round(&self) {
        // All are polled again.
        self.peers.iter().for_each(|peer| peer.add());
        self.drain();
        self.ctx.set_poll_max(WINDOW);
        // The first wait opens the window.
        self.pass();
        let busy = &self.peers[self.below(self.peers.len())];
        busy.is_busy.set(true);
        let ends = || self.peers.iter().map(|peer| peer.ends.get()).sum::<u32>();
        let (before, start) = (ends(), Instant::now());
        while ends() == before {
            assert!(start.elapsed() < PATIENCE, "no peer becomes idle");
            self.pass();
        }
        busy.is_busy.set(false);
        match self.below(4) {
            0 => self.pass(),
            1 => self.peers[self.below(4)].remote.set(true),
            _ => self.ctx.set_poll_max(Duration::ZERO),
        }
        self.drain();
        self.peers.iter().for_each(|peer| peer.remote.set(false));
    }

    fn drain(&self) {
        while self.peers.iter().any(|peer| peer.left.get() > 0) {
            self.pass();
        }
    }
}

#[test]
fn work_is_found_whenever_it_comes() {
    let rig = Rig::new(1);
    (0..8).for_each(|_| rig.round());
}
