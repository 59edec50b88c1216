//! What must hold, with the real binaries: those checks of `hedgerow-sim interop` that need no program of others and not
//! several minutes.

use std::sync::OnceLock;

use hedgerow_sim::binaries::Binaries;
use hedgerow_sim::interop::checks;
use hedgerow_sim::terminal;

/// Found, or built, once for all tests here.
fn binaries() -> &'static Binaries {
    static BINARIES: OnceLock<Binaries> = OnceLock::new();
    BINARIES
        .get_or_init(|| Binaries::beside(env!("CARGO_BIN_EXE_hedgerow-sim").as_ref()).expect("entry and node build"))
}

async fn holds(name: &str) {
    let check = checks().into_iter().find(|check| check.name == name).expect("a check of this name");
    match check.run(binaries()).await {
        Ok(figure) => terminal::say(format!("{name}: {figure}")),
        Err(broken) => panic!("{}: {broken}", check.promise),
    }
}

macro_rules! promises {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                holds($name).await;
            }
        )*

        #[test]
        fn every_check_that_needs_no_other_program_nor_much_time_is_a_test() {
            let here = [$($name),*];
            for check in checks().iter().filter(|check| check.is_test()) {
                assert!(here.contains(&check.name), "{} is no test", check.name);
            }
        }
    };
}

promises! {
    bodies_methods_targets_and_statuses_arrive_as_they_were_sent: "bodies",
    a_websocket_echoes_and_closes: "websocket",
    a_client_that_leaves_cancels_its_request_at_the_service: "disconnect",
    a_slow_reader_makes_nobody_grow: "slow-reader",
    no_get_fails_while_a_worker_and_a_coordinator_are_killed: "kill-under-load",
    a_restarted_entry_routes_within_two_seconds: "entry-restart",
    a_node_that_leaves_finishes_what_it_has: "leave",
    a_worker_that_falls_silent_is_passed_over: "pause",
    a_post_whose_worker_dies_is_never_run_twice: "post-outcome-unknown",
    a_post_that_was_refused_runs_elsewhere: "post-refused",
    a_service_that_nobody_offers_is_503_with_a_reason: "nobody-offers",
    a_capacity_of_two_is_kept_from_one_entry: "capacity-one-entry",
    a_capacity_of_two_is_kept_from_two_entries: "capacity-two-entries",
    a_capacity_of_two_is_kept_from_two_doors: "capacity-two-doors",
    smuggled_and_oversized_requests_are_refused: "hostile-requests",
    a_body_over_the_limit_is_413: "oversized-body",
    no_service_name_leaves_its_route: "hostile-names",
    garbage_at_the_tunnel_harms_nobody: "hostile-tunnel",
    a_wrong_flag_is_named: "wrong-flag",
    an_unknown_key_names_the_nearest_one: "unknown-key",
    a_port_in_use_is_said: "port-in-use",
    a_node_waits_for_its_entry: "unreachable-entry",
    a_data_directory_in_use_is_said: "data-dir-in-use",
    a_corrupt_key_is_never_overwritten: "corrupt-key",
    agents_are_known_at_every_door: "contract-anywhere",
    a_coordinator_that_dies_between_two_steps_is_not_noticed: "contract-killed-between",
    an_agent_that_was_silent_comes_back_and_one_that_is_gone_does_not: "contract-silence",
    private_addresses_are_never_asked: "url-guard",
    coordinators_agree_right_after_the_last_join: "mesh-agrees",
    a_coordinator_that_was_away_catches_up: "mesh-catches-up",
    a_coordinator_that_has_lost_its_registry_is_back_in_seconds: "mesh-wiped",
    workers_whose_home_is_killed_have_another_one: "mesh-home",
    a_worker_is_reached_by_way_of_its_home: "mesh-relay",
    a_coordinators_own_port_reaches_workers_at_home_elsewhere: "own-port-relay",
    of_two_processes_with_one_key_one_stops: "mesh-clone",
    a_coordinator_finds_the_others_while_the_entry_is_gone: "mesh-without-entry",
    damaged_files_are_named_and_set_aside: "damaged-files",
    a_node_that_is_killed_at_any_moment_has_whole_files: "killed-while-writing",
    three_of_four_nodes_become_coordinators: "mesh-election",
    a_node_without_udp_serves_over_tcp: "udp-blocked",
    a_tunnel_moves_to_quic_and_nobody_notices: "udp-opens",
    coordinators_that_nobody_can_dial_are_one_mesh_by_way_of_the_entry: "mesh-by-entry",
}
