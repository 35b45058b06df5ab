//! Numbered places, which are used again.

/// Values by number. A number that is used again differs from its predecessors in the upper half.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Stores a value, and returns its number.
    pub(super) fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                generation: 0,
                value: None,
            });
            u32::try_from(self.entries.len() - 1).expect("there is memory for fewer than 2^32 requests")
        });
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.value = Some(value);
        u64::from(entry.generation) << 32 | u64::from(index)
    }

    pub(super) fn get(&self, number: u64) -> Option<&T> {
        let (index, generation) = parts(number);
        let entry = self.entries.get(index)?;
        entry.value.as_ref().filter(|_| entry.generation == generation)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let (index, generation) = parts(number);
        let entry = self.entries.get_mut(index)?;
        entry.value.as_mut().filter(|_| entry.generation == generation)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        self.get(number)?;
        let (index, _) = parts(number);
        let value = self.entries[index].value.take();
        #[allow(clippy::cast_possible_truncation, reason = "the lower half is the index")]
        self.free.push(number as u32);
        value
    }

    /// Returns the values with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        (0u64..).zip(&self.entries).filter_map(|(index, entry)| {
            let number = u64::from(entry.generation) << 32 | index;
            Some((number, entry.value.as_ref()?))
        })
    }

    /// Returns the number of values.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|entry| entry.value.as_mut())
    }
}

#[allow(clippy::cast_possible_truncation, reason = "both halves fit")]
fn parts(number: u64) -> (usize, u32) {
    (number as u32 as usize, (number >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_number_finds_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.get(first), Some(&'a'));
        assert_eq!((slab.remove(first), slab.remove(first)), (Some('a'), None));
        let second = slab.insert('b');
        assert_ne!(first, second);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.get(second + 1), None);
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.iter().collect::<Vec<_>>(), [(second, &'b')]);
    }
}
