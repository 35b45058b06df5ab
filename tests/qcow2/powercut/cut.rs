//! The trace of a daemon's writes, and the images that a power cut may leave.

use testkit::random::Random;

const SECTOR: usize = 512;
const HEAD: usize = 32;

enum Record<'a> {
    Write { offset: usize, data: &'a [u8] },
    Punch { offset: usize, len: usize },
    SyncBegin(u64),
    SyncEnd(u64),
    Resize(usize),
}

/// All records, in order, each with the number of its file, and the place in the journal where it ends.
pub(super) struct Trace<'a>(Vec<(Record<'a>, usize, usize)>);

impl<'a> Trace<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let (mut records, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let number = |n: usize| {
                let field = bytes[at + n * 8..][..8].try_into().expect("eight bytes");
                u64::from_le_bytes(field)
            };
            let [kind, file, offset, len] = [0, 1, 2, 3].map(number);
            let place = |value| usize::try_from(value).expect("it fits");
            at += HEAD;
            records.push((
                match kind {
                    1 => {
                        let data = &bytes[at..at + place(len)];
                        at += data.len();
                        Record::Write {
                            offset: place(offset),
                            data,
                        }
                    }
                    2 => Record::Punch {
                        offset: place(offset),
                        len: place(len),
                    },
                    3 => Record::SyncBegin(offset),
                    4 => Record::SyncEnd(offset),
                    _ => Record::Resize(place(offset)),
                },
                place(file),
                at,
            ));
        }
        Self(records)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the place in the file after this many records.
    pub(super) fn position(&self, records: usize) -> usize {
        records.checked_sub(1).map_or(0, |last| self.0[last].2)
    }

    /// Returns the files after a power cut. Of what was not synced, `mode` 0 keeps nothing, 1 some records, 2 some
    /// sectors, and 3 everything, as if only the daemon was killed.
    pub(super) fn cut(
        &self,
        originals: &[Vec<u8>],
        records: usize,
        mode: usize,
        random: &mut Random,
    ) -> Vec<Vec<u8>> {
        let file =
            |(number, original): (usize, &Vec<u8>)| self.cut_file(number, original, records, mode, random);
        originals.iter().enumerate().map(file).collect()
    }

    fn cut_file(
        &self,
        file: usize,
        original: &[u8],
        records: usize,
        mode: usize,
        random: &mut Random,
    ) -> Vec<u8> {
        let done: Vec<&Record<'_>> = self.0[..records]
            .iter()
            .filter(|(_, of, _)| *of == file)
            .map(|(record, ..)| record)
            .collect();
        let ended = done.iter().filter_map(|record| match record {
            Record::SyncEnd(number) => Some(*number),
            _ => None,
        });
        let last = ended.max().unwrap_or(0);
        let synced = done
            .iter()
            .position(|record| matches!(record, Record::SyncBegin(number) if *number == last));
        let synced = synced.unwrap_or(0);
        let mut image = original.to_vec();
        for (number, record) in done.into_iter().enumerate() {
            if number >= synced && (mode == 0 || mode == 1 && random.below(2) == 0) {
                continue;
            }
            match record {
                Record::Write { offset, data } => {
                    let end = offset + data.len();
                    let mut at = *offset;
                    while at < end {
                        let next = end.min(at / SECTOR * SECTOR + SECTOR);
                        if number < synced || mode % 2 == 1 || random.below(2) == 0 {
                            let len = image.len().max(next);
                            image.resize(len, 0);
                            image[at..next].copy_from_slice(&data[at - offset..next - offset]);
                        }
                        at = next;
                    }
                }
                Record::Punch { offset, len } => {
                    let end = image.len();
                    if *offset < end {
                        image[*offset..end.min(offset + len)].fill(0);
                    }
                }
                Record::Resize(len) => image.resize(*len, 0),
                Record::SyncBegin(_) | Record::SyncEnd(_) => {}
            }
        }
        image
    }
}

/// Returns the sectors of a disk with their offsets.
pub(super) fn sectors(disk: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    (0..).step_by(SECTOR).zip(disk.chunks(SECTOR))
}
