//! A parent completes once, after its last child, with the first error, whatever the cuts and the order.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::sample::Index;
use vhost_user_blk::io::{Completer, IoOp, IoRequest, Requests, Splitter};

/// The requests that came back.
#[derive(Default)]
pub(crate) struct Back(RefCell<Requests>);

impl Back {
    pub(crate) fn count(&self) -> usize {
        self.0.borrow().len()
    }

    pub(crate) fn take_one(&self) -> Box<IoRequest> {
        self.0.borrow_mut().pop().expect("a request is back")
    }
}

impl Completer for Back {
    fn complete(&self, request: Box<IoRequest>) {
        self.0.borrow_mut().push(request);
    }
}

/// Makes a request whose memory is `ranges`.
pub(crate) fn request(op: IoOp, offset: u64, ranges: &mut [Vec<u8>], back: &Rc<Back>) -> Box<IoRequest> {
    let mut request = IoRequest::new();
    (request.op, request.offset) = (op, offset);
    for range in ranges {
        // SAFETY: the tests keep the buffers until the request is back or gone, and use them only through it meanwhile.
        unsafe { request.iov.push(range.as_mut_ptr(), range.len()) };
    }
    request.set_completer(Rc::clone(back) as Rc<dyn Completer>);
    request
}

/// Returns the addresses of all bytes of a request, in order.
fn addresses(request: &IoRequest) -> Vec<usize> {
    let ranges = request.whole().as_slice().iter();
    ranges
        .flat_map(|range| (0..range.iov_len).map(|n| range.iov_base.addr() + n))
        .collect()
}

#[derive(Clone, Debug)]
struct Case {
    ranges: Vec<usize>,
    cuts: Vec<Index>,
    /// Errors of the children that fail.
    errors: Vec<Option<i32>>,
    /// The order of completion.
    order: Vec<Index>,
    /// The first `early` children complete before the next one is made.
    early: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let index = any::<Index>();
    (
        prop::collection::vec(0..700usize, 0..12),
        prop::collection::vec(index, 0..9),
        prop::collection::vec(prop::option::weighted(0.2, 1..40i32), 10),
        prop::collection::vec(any::<Index>(), 10),
        0..4usize,
    )
        .prop_map(|(ranges, cuts, errors, order, early)| Case {
            ranges,
            cuts,
            errors,
            order,
            early,
        })
}

fn check(splitter: &Splitter, case: &Case) -> Result<(), TestCaseError> {
    let back = Rc::<Back>::default();
    let mut ranges: Vec<Vec<u8>> = case.ranges.iter().map(|&len| vec![0; len]).collect();
    let len: usize = case.ranges.iter().sum();
    let parent = request(IoOp::Read, 1 << 20, &mut ranges, &back);
    let expected = addresses(&parent);
    let mut cuts: Vec<usize> = case.cuts.iter().map(|cut| cut.index(len + 1)).collect();
    cuts.extend([0, len]);
    cuts.sort_unstable();

    let (mut out, mut first_error) = (Requests::new(), None);
    let mut end = |mut child: Box<IoRequest>, errno: Option<i32>| {
        child.result = errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
        first_error = first_error.or(errno);
        child.finish();
    };
    let split = splitter.split(parent);
    for (n, cut) in cuts.windows(2).enumerate() {
        let child = split.child(cut[0], cut[1] - cut[0]);
        prop_assert_eq!(child.offset, (1 << 20) + cut[0] as u64);
        prop_assert_eq!(child.whole().len(), cut[1] - cut[0]);
        prop_assert_eq!(&addresses(&child), &expected[cut[0]..cut[1]]);
        out.push(child);
        if n < case.early {
            end(out.pop().expect("pushed just now"), case.errors[n]);
        }
    }
    prop_assert_eq!(back.count(), 0, "a parent that is being cut is not over");
    drop(split);
    for n in case.early..case.early + out.len() {
        prop_assert_eq!(back.count(), 0);
        let which = case.order[n % 10].index(out.len());
        end(out.swap_remove(which), case.errors[n % 10]);
    }
    prop_assert_eq!((back.count(), splitter.waiting()), (1, 0));
    let parent = back.take_one();
    prop_assert_eq!(
        parent.result.as_ref().err().and_then(io::Error::raw_os_error),
        first_error
    );
    prop_assert_eq!(addresses(&parent), expected, "its memory is untouched");
    Ok(())
}

/// A follower completes through its leader, and has a completer of its own nevertheless.
#[test]
fn a_splitter_is_freed_with_its_merged_children() {
    let (splitter, back) = (Splitter::new(), Rc::<Back>::default());
    let split = splitter.split(request(IoOp::Read, 0, &mut [vec![0; 1024]], &back));
    let mut group = split.child(0, 512);
    group.absorb(split.child(512, 512));
    drop(split);
    group.finish();
    assert!(back.take_one().result.is_ok());
    let freed = Rc::downgrade(&splitter);
    drop(splitter);
    assert!(freed.upgrade().is_none(), "its idle children keep it");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cuts_any_errors_any_order(cases in prop::collection::vec(case(), 1..4)) {
        // All cases share one splitter, so that boxes and slots are reused.
        let splitter = Splitter::new();
        for case in &cases {
            check(&splitter, case)?;
        }
    }
}

#[test]
fn a_parent_without_children_comes_back_at_once() {
    let (splitter, back) = (Splitter::new(), Rc::<Back>::default());
    let split = splitter.split(request(IoOp::Flush, 0, &mut [], &back));
    split.fail(io::Error::from_raw_os_error(libc::ENOSPC));
    assert_eq!(back.count(), 0);
    drop(split);
    assert_eq!(
        back.take_one().result.unwrap_err().raw_os_error(),
        Some(libc::ENOSPC)
    );
}

#[test]
fn a_child_can_be_split_again() {
    let (upper, lower, back) = (Splitter::new(), Splitter::new(), Rc::<Back>::default());
    let mut memory = [vec![0; 4096]];
    let split = upper.split(request(IoOp::Read, 0, &mut memory, &back));
    let child = split.child(1024, 2048);
    drop(split);
    let split = lower.split(child);
    let grandchildren = [split.child(0, 1024), split.child(1024, 1024)];
    drop((split, lower));
    assert_eq!(grandchildren[1].offset, 2048);
    assert_eq!(
        grandchildren[1].whole().as_slice()[0].iov_base.addr(),
        memory[0].as_ptr().addr() + 2048
    );
    for grandchild in grandchildren {
        assert_eq!(back.count(), 0);
        grandchild.finish();
    }
    assert!(back.take_one().result.is_ok());
}

#[test]
fn consecutive_children_travel_as_one_group() {
    let (splitter, back) = (Splitter::new(), Rc::<Back>::default());
    let mut memory = [vec![0; 1000], vec![0; 3096]];
    let parent = request(IoOp::Write { durable: false }, 512, &mut memory, &back);
    let all = addresses(&parent);
    let split = splitter.split(parent);
    let mut leader = split.child(0, 512);
    leader.absorb(split.child(512, 2048));
    leader.absorb(split.child(2560, 1536));
    drop(split);
    assert!(leader.is_merged());
    assert_eq!(addresses(&leader), all);
    assert_eq!(leader.alone().len(), 512);
    leader.set_results(|member| match member.offset {
        512 => Ok(()),
        offset => Err(io::Error::from_raw_os_error(i32::try_from(offset).unwrap())),
    });
    // The followers finish before the leader, in order, so the first error is that of offset 1024.
    leader.finish();
    let errno = back.take_one().result.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(1024));
}

#[test]
fn a_child_keeps_its_parents_memory_alive() {
    let (splitter, back) = (Splitter::new(), Rc::<Back>::default());
    let mut memory = [vec![0; 512]];
    let split = splitter.split(request(IoOp::Read, 0, &mut memory, &back));
    let child = split.child(0, 512);
    drop((split, splitter));
    assert_eq!(
        Rc::strong_count(&back),
        2,
        "the parent waits, though nobody else has the splitter"
    );
    assert_eq!(child.whole().len(), 512);
    child.finish();
    assert_eq!(back.count(), 1);
}
