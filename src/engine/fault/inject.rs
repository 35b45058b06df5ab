//! Requests that are made to go wrong (`--inject`), in front of whatever engine there is.
//!
//! Those that a rule strikes never reach the engine: a worker of a pool of their own executes them, badly. All others go
//! on as usual. Without `--inject` none of this is on a request's way.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use super::{Effect, Fault, Faults};
use crate::aio::AioContext;
use crate::engine::file::execute::execute;
use crate::io::{Completer, IoOp, IoRequest, Requests};
use crate::storage::Storage;
use crate::thread_pool::{Outcome, ThreadPool, Work};

/// An engine with faults. IOThread only.
#[derive(Debug)]
pub(in crate::engine) struct Injector {
    pub(in crate::engine) faults: Arc<Faults>,
    pub(in crate::engine) storage: Arc<Storage>,
    pub(in crate::engine) pool: ThreadPool,
}

impl Injector {
    /// Takes those out of `batch` that are to go wrong.
    pub(in crate::engine) fn strike(&self, batch: &mut Requests, completer: &Rc<dyn Completer>) {
        let mut faulty: Vec<Box<dyn Work>> = Vec::new();
        for mut request in std::mem::take(batch) {
            let effect = match request.op {
                IoOp::Salvage => Some(Effect::default()),
                op => self.faults.strike(op, place(&request)),
            };
            match effect {
                Some(Effect {
                    fault: Some(Fault::Panic),
                    ..
                }) => panic!("injected (--inject)"),
                None => batch.push(request),
                Some(effect) => {
                    request.set_completer(Rc::clone(completer));
                    faulty.push(Box::new(Faulty {
                        request,
                        effect,
                        faults: Arc::clone(&self.faults),
                        storage: Arc::clone(&self.storage),
                    }));
                }
            }
        }
        if !faulty.is_empty() {
            self.pool.submit_batch(&mut faulty);
        }
    }
}

/// First byte and length.
fn place(request: &IoRequest) -> Option<(u64, u64)> {
    let len = match request.op {
        IoOp::Discard | IoOp::WriteZeroes { .. } => request.ranges.iter().map(|range| range.len).sum(),
        _ => request.alone().len() as u64,
    };
    Some((request.first_byte()?, len))
}

/// A request that goes wrong.
struct Faulty {
    request: Box<IoRequest>,
    effect: Effect,
    faults: Arc<Faults>,
    storage: Arc<Storage>,
}

impl Work for Faulty {
    fn run(&mut self) {
        thread::sleep(self.effect.delay);
        let request = &mut *self.request;
        let (storage, iov) = (&*self.storage, request.alone());
        let write = matches!(request.op, IoOp::Write { .. });
        request.result = match self.effect.fault {
            None if request.op == IoOp::Salvage => {
                let salvaged = storage.salvage(iov, request.offset, |offset, len| {
                    let struck = self.faults.strike(IoOp::Read, Some((offset, len)));
                    struck.is_none_or(|effect| effect.fault.is_none())
                });
                request.op = IoOp::Read;
                salvaged
            }
            None => return execute(storage, request),
            // On the IOThread already, see `submit`.
            Some(Fault::Panic) => panic!("injected (--inject)"),
            Some(Fault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Fault::Torn(errno)) => {
                // What becomes of the first half is nobody's business.
                let _ = storage.write_half(iov, request.offset);
                Err(io::Error::from_raw_os_error(errno))
            }
            Some(Fault::Short) => {
                let result = storage.transfer_in_halves(iov, request.offset, write);
                match request.op {
                    IoOp::Write { durable: true } => result.and_then(|()| storage.flush()),
                    _ => result,
                }
            }
        };
    }

    fn complete(mut self: Box<Self>, _ctx: &AioContext, outcome: Outcome) {
        if outcome != Outcome::Done {
            self.request.result = Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.request.finish();
    }
}
