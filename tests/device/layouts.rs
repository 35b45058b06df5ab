//! A request is the same however its bytes are cut into descriptors.

use proptest::prelude::*;
use vhost_user_blk::virtqueue::RingFeatures;

use super::vm::{Desc, HEAP, Vm, header};

const SIZE: u16 = 64;
const SECTORS: u64 = 64;
const TABLE: u64 = HEAP;
const BUFFERS: u64 = HEAP + 0x1000;

#[derive(Clone, Debug)]
struct Request {
    write: bool,
    sector: u64,
    data: Vec<u8>,
    /// Offsets at which the readable and the writable bytes are cut into descriptors.
    cuts: Vec<usize>,
    /// Number of direct descriptors before an indirect table. `None`: all are direct.
    direct: Option<usize>,
    /// A seed for the order of entries in the table.
    shuffle: u16,
}

fn request() -> impl Strategy<Value = Request> {
    let sizes = (0..SECTORS).prop_flat_map(|sector| (Just(sector), 1..=(SECTORS - sector).min(8)));
    let rest = (
        any::<bool>(),
        any::<u8>(),
        prop::collection::vec(0usize..5000, 0..12),
    );
    (sizes, rest, prop::option::of(0usize..4), any::<u16>()).prop_map(
        |((sector, sectors), (write, fill, cuts), direct, shuffle)| {
            let len = usize::try_from(sectors * 512).unwrap();
            let data = (0..len)
                .map(|i| fill.wrapping_add((i / 7 % 256).to_le_bytes()[0]))
                .collect();
            Request {
                write,
                sector,
                data,
                cuts,
                direct,
                shuffle,
            }
        },
    )
}

impl Request {
    fn readable(&self) -> Vec<u8> {
        let data: &[u8] = if self.write { &self.data } else { &[] };
        [&header(u32::from(self.write), self.sector), data].concat()
    }

    fn writable(&self) -> usize {
        1 + if self.write { 0 } else { self.data.len() }
    }

    /// Returns the chain, with its bytes cut at `cuts`. Some descriptors may be empty.
    fn descs(&self) -> Vec<Desc> {
        let mut descs = Vec::new();
        for (at, len, writable) in [
            (BUFFERS, self.readable().len(), false),
            (BUFFERS + 0x8000, self.writable(), true),
        ] {
            let mut cuts: Vec<usize> = self
                .cuts
                .iter()
                .map(|cut| cut % (len + 1))
                .chain([0, len])
                .collect();
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                let len = u32::try_from(pair[1] - pair[0]).unwrap();
                descs.push(Desc {
                    addr: at + pair[0] as u64,
                    len,
                    writable,
                });
            }
        }
        descs
    }

    fn offer(&self, vm: &mut Vm) -> u16 {
        let descs = self.descs();
        // With an odd factor the order contains every entry of the table once.
        let factor = self.shuffle | 1;
        let order: Vec<u16> = (0..SIZE)
            .map(|i| i.wrapping_mul(factor).wrapping_add(self.shuffle) % SIZE)
            .collect();
        vm.put(BUFFERS, &self.readable());
        vm.put(BUFFERS + 0x8000, &vec![0xee; self.writable()]);
        let head = match self.direct {
            Some(direct) => vm.indirect(&order, &descs, direct.min(descs.len() - 1), TABLE),
            None => vm.direct(&order, &descs),
        };
        vm.offer(head);
        head
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_descriptor_layout_matches_a_plain_array(
        event_idx: bool, requests in prop::collection::vec(request(), 1..24)
    ) {
        let mut disk = vec![0; usize::try_from(SECTORS * 512).unwrap()];
        let mut vm = Vm::new(&disk, SIZE, 0, RingFeatures { event_idx, indirect: true });
        for request in &requests {
            let head = request.offer(&mut vm);
            vm.kick();
            let at = usize::try_from(request.sector * 512).unwrap();
            let area = at..at + request.data.len();
            prop_assert_eq!(vm.wait_used(1), [(head, u32::try_from(request.writable()).unwrap())]);
            let answer = vm.bytes(BUFFERS + 0x8000, request.writable());
            let (data, status) = answer.split_at(answer.len() - 1);
            prop_assert_eq!(status, [0]);
            if request.write {
                disk[area].copy_from_slice(&request.data);
            } else {
                prop_assert_eq!(data, &disk[area]);
            }
        }
    }
}
