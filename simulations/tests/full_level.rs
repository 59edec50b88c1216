//! The full level of the simulation is a workspace of its own, because its timer is patched and its clock is virtual: its tests run
//! by a cargo of its own, and so belong to `cargo test --workspace` all the same. Alone: `cargo test -p hedgerow-sim --test full_level`.

mod cargo;

#[test]
fn the_full_level_passes_its_own_tests() {
    cargo::succeeds("test", "full", &[]);
}
