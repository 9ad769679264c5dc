//! A token bucket, kept as one number.
//!
//! Instead of counting tokens it keeps the time at which it will be full again: a request
//! moves that time on by what one token takes to come back. So an old bucket needs no
//! refilling, one of which nothing is known is full, and there is nothing that could be
//! half written.

/// Rate is how many requests pass: `burst` at once, and then one every `interval`
/// nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub interval: u64,
    pub burst: u64,
}

/// What a bucket says to a request.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// It passes. The bucket is full at the time `full`, and now has `left` tokens.
    Pass { full: u64, left: u64 },
    /// It has to wait for so many nanoseconds.
    Wait(u64),
}

impl Rate {
    /// Takes a token of a bucket that is full at the time `full`. All times are in
    /// nanoseconds.
    pub fn take(&self, full: u64, now: u64) -> Verdict {
        // An empty bucket is full after this time. More can only be of a clock that was
        // set back or of a larger rate before this one, and is not held against anybody.
        let whole = self.interval.saturating_mul(self.burst);
        let missing = full.saturating_sub(now).min(whole);
        let after = missing.saturating_add(self.interval);
        if after > whole {
            return Verdict::Wait(after - whole);
        }
        Verdict::Pass { full: now.saturating_add(after), left: (whole - after) / self.interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Rate = Rate { interval: 100, burst: 10 };

    /// Takes tokens at one time until there is none, and gives how many there were.
    fn drain(rate: Rate, full: &mut u64, now: u64) -> u64 {
        let mut taken = 0;
        while let Verdict::Pass { full: next, .. } = rate.take(*full, now) {
            *full = next;
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_new_bucket_is_full() {
        assert_eq!(drain(TEN, &mut 0, 5_000), 10);
    }

    #[test]
    fn what_is_left_is_told() {
        assert_eq!(TEN.take(0, 5_000), Verdict::Pass { full: 5_100, left: 9 });
        assert_eq!(TEN.take(5_900, 5_000), Verdict::Pass { full: 6_000, left: 0 });
        assert_eq!(TEN.take(5_901, 5_000), Verdict::Wait(1));
        assert_eq!(TEN.take(6_000, 5_000), Verdict::Wait(100));
    }

    #[test]
    fn a_token_comes_back_in_each_interval_and_none_before() {
        let mut full = 0;
        drain(TEN, &mut full, 5_000);
        assert_eq!(drain(TEN, &mut full, 5_099), 0);
        assert_eq!(drain(TEN, &mut full, 5_100), 1);
        assert_eq!(drain(TEN, &mut full, 5_199), 0);
        assert_eq!(drain(TEN, &mut full, 5_450), 3);
        assert_eq!(drain(TEN, &mut full, 5_500), 1);
    }

    #[test]
    fn there_are_never_more_than_the_burst() {
        let mut full = 0;
        drain(TEN, &mut full, 5_000);
        assert_eq!(drain(TEN, &mut full, u64::MAX / 2), 10);
    }

    #[test]
    fn over_a_long_time_it_is_the_rate() {
        let (mut full, mut passed) = (0, 0);
        for now in (0..100_000u64).step_by(7) {
            if let Verdict::Pass { full: next, .. } = TEN.take(full, now + 1_000_000) {
                full = next;
                passed += 1;
            }
        }
        assert!((1_000..=1_010).contains(&passed), "{passed}");
    }

    #[test]
    fn a_clock_that_is_set_back_costs_one_empty_bucket() {
        let mut full = 0;
        drain(TEN, &mut full, 1_000_000);
        assert_eq!(TEN.take(full, 10), Verdict::Wait(100));
        assert_eq!(drain(TEN, &mut full, 110), 0, "it is as empty as it was");
    }

    #[test]
    fn numbers_at_the_edge_do_not_overflow() {
        let huge = Rate { interval: u64::MAX, burst: u64::MAX };
        assert_eq!(huge.take(0, u64::MAX), Verdict::Pass { full: u64::MAX, left: 0 });
    }
}
