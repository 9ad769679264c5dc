//! Which of the slots of a limit has the bucket of a key.
//!
//! Shared data can be written and never removed, so a limit has a number of slots and no
//! more. A key has a few of them, one behind the other, from where its hash says; its
//! bucket is in the first that was free when it came. So two keys share a bucket only
//! when all slots of the one are taken by others whose buckets are not full.

/// How many slots a limit has. A client who invents keys cannot make the proxy remember
/// more than that.
pub const SLOTS: u64 = 1 << 16;

/// How many of them a key has.
pub const PROBES: u64 = 4;

/// What is kept of a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Entry {
    /// The hash of the key whose bucket it is.
    pub hash: u64,
    /// When it will be full, see [`crate::bucket`].
    pub full: u64,
}

impl Entry {
    pub fn bytes(&self) -> [u8; 16] {
        (u128::from(self.hash) << 64 | u128::from(self.full)).to_be_bytes()
    }

    /// What was written by [`Entry::bytes`]; of anything else a bucket that is full, of
    /// nobody in particular.
    pub fn read(bytes: &[u8]) -> Entry {
        let number = bytes.try_into().map_or(0, u128::from_be_bytes);
        Entry { hash: (number >> 64) as u64, full: number as u64 }
    }
}

/// The slot of a bucket, with what is to be known of the bucket there and the version to
/// write under; none: nothing ever was there. What takes from it writes the same hash
/// again: who shares a bucket leaves it to its owner.
#[derive(Debug, PartialEq)]
pub struct Bucket {
    pub slot: u64,
    pub entry: Entry,
    pub version: Option<u32>,
}

/// Finds the bucket of a key. `read` gives what is in a slot, with its version; none of a
/// slot in which nothing ever was.
pub fn find(hash: u64, now: u64, read: impl Fn(u64) -> Option<(Entry, Option<u32>)>) -> Bucket {
    let fresh = |slot, version| Bucket { slot, entry: Entry { hash, full: 0 }, version };
    let (mut free, mut taken) = (None, None);
    for slot in (0..PROBES).map(|i| hash.wrapping_add(i) % SLOTS) {
        match read(slot) {
            // Slots are never emptied, so the key was in none behind this one.
            None => return free.unwrap_or_else(|| fresh(slot, None)),
            Some((entry, version)) if entry.hash == hash => return Bucket { slot, entry, version },
            Some((entry, version)) if entry.full <= now => free = free.or(Some(fresh(slot, version))),
            Some((entry, version)) => taken = taken.or(Some(Bucket { slot, entry, version })),
        }
    }
    free.or(taken).expect("a slot is free or taken")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashMap;

    const NOW: u64 = 1_000;

    /// The slots of a limit; a version is how often a slot was written.
    #[derive(Default)]
    struct Table(RefCell<HashMap<u64, (Entry, u32)>>);

    impl Table {
        fn find(&self, hash: u64, now: u64) -> Bucket {
            find(hash, now, |slot| self.0.borrow().get(&slot).map(|(e, v)| (*e, Some(*v))))
        }

        /// Makes the bucket of a key full at a time, and gives its slot.
        fn write(&self, hash: u64, full: u64) -> u64 {
            let Bucket { slot, entry, version } = self.find(hash, NOW);
            self.0.borrow_mut().insert(slot, (Entry { full, ..entry }, version.unwrap_or(0) + 1));
            slot
        }
    }

    /// Keys that all begin at the slot 7.
    fn alike(n: u64) -> u64 {
        7 + n * SLOTS
    }

    #[test]
    fn what_is_written_is_read() {
        let entry = Entry { hash: u64::MAX - 1, full: 3 };
        assert_eq!(Entry::read(&entry.bytes()), entry);
        for other in [&b""[..], b"12345678", &[0xff; 17]] {
            assert_eq!(Entry::read(other), Entry::default());
        }
    }

    #[test]
    fn keys_that_begin_at_the_same_slot_have_a_bucket_each() {
        let table = Table::default();
        let slots: Vec<u64> = (0..PROBES).map(|n| table.write(alike(n), NOW + 1 + n)).collect();
        assert_eq!(slots, [7, 8, 9, 10]);
        for n in 0..PROBES {
            let want = Bucket { slot: 7 + n, entry: Entry { hash: alike(n), full: NOW + 1 + n }, version: Some(1) };
            assert_eq!(table.find(alike(n), NOW), want);
        }
    }

    #[test]
    fn one_more_shares_a_bucket_and_leaves_it_to_its_owner() {
        let table = Table::default();
        for n in 0..PROBES {
            table.write(alike(n), NOW + 5);
        }
        assert_eq!(table.write(alike(PROBES), NOW + 9), 7);
        let want = Bucket { slot: 7, entry: Entry { hash: alike(0), full: NOW + 9 }, version: Some(2) };
        assert_eq!(table.find(alike(0), NOW), want);
        assert_eq!(table.0.borrow().len() as u64, PROBES);
    }

    #[test]
    fn a_bucket_that_is_full_gives_its_slot_to_another() {
        let table = Table::default();
        table.write(alike(0), NOW + 5);
        table.write(alike(1), NOW + 50);
        let want = Bucket { slot: 7, entry: Entry { hash: alike(2), full: 0 }, version: Some(1) };
        assert_eq!(table.find(alike(2), NOW + 5), want);
        assert_eq!(table.find(alike(2), NOW + 4).slot, 9);
        // Nobody moves to a better slot: what is known of a key is where it is.
        let want = Bucket { slot: 8, entry: Entry { hash: alike(1), full: NOW + 50 }, version: Some(1) };
        assert_eq!(table.find(alike(1), NOW + 5), want);
    }

    #[test]
    fn behind_the_last_slot_is_the_first() {
        let table = Table::default();
        let last = SLOTS - 1;
        assert_eq!((table.write(last, NOW + 1), table.write(last + SLOTS, NOW + 1)), (last, 0));
        let huge = u64::MAX; // begins at the last slot, too
        assert_eq!(table.find(huge, NOW).slot, 1);
    }

    #[test]
    fn what_another_version_wrote_is_free() {
        let found = find(7, NOW, |slot| (slot == 7).then(|| (Entry::read(b"12345678"), Some(3))));
        assert_eq!(found, Bucket { slot: 7, entry: Entry { hash: 7, full: 0 }, version: Some(3) });
    }
}
