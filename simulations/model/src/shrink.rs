//! Makes a list shorter while something stays true of it: delta debugging (Zeller and Hildebrandt, "Simplifying and isolating
//! failure-inducing input", 2002).

/// The shortest sub-list found for which `fails` holds, with at most `tries` calls. `all` itself is taken to fail.
pub fn shrink<T: Clone>(all: &[T], tries: usize, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut left = tries;
    let mut now = all.to_vec();
    let mut parts = 2;
    while !now.is_empty() && left > 0 {
        let size = now.len().div_ceil(parts).max(1);
        let mut shorter = None;
        let mut begin = 0;
        while begin < now.len() && left > 0 {
            let end = (begin + size).min(now.len());
            let without: Vec<T> = now[..begin].iter().chain(&now[end..]).cloned().collect();
            left -= 1;
            if fails(&without) {
                shorter = Some(without);
                break;
            }
            begin = end;
        }
        match shorter {
            Some(without) => {
                now = without;
                parts = parts.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(now.len()),
        }
    }
    now
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_needed_stays_and_nothing_else(
            all in 1..200_usize,
            needed in proptest::collection::btree_set(0..200_usize, 0..4),
        ) {
            let needed: Vec<usize> = needed.into_iter().filter(|n| *n < all).collect();
            let list: Vec<usize> = (0..all).collect();
            let short = shrink(&list, 10_000, |some| needed.iter().all(|n| some.contains(n)));
            prop_assert_eq!(short, needed);
        }
    }

    #[test]
    fn it_ends_when_the_tries_are_used_up() {
        let mut tries = 0;
        let list: Vec<u32> = (0..1000).collect();
        shrink(&list, 7, |_| {
            tries += 1;
            false
        });
        assert_eq!(tries, 7);
    }
}
