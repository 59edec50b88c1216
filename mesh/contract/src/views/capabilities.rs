//! Capabilities that anybody may see.

use hedgerow_proto::record::{Hardware, WorkerType};
use serde_json::{Map, Value};

/// Fields whose text says what a machine is and not where. Text in any other field may be a host name or an address.
const TEXTS: [&str; 5] = ["worker_type", "ram", "gpu_type", "gpu_memory", "location"];
/// Fields that say where, in whatever form they say it.
const PLACES: [&str; 4] = ["hostname", "public_ip", "vpn_ip", "ip"];

/// Of what an agent said: numbers and truth values, and text where the contract knows what it means.
pub(super) fn of_guest(json: &str) -> Map<String, Value> {
    // It was checked by whoever signed it, which may be another program.
    let all: Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let shown = |field: &str, value: &Value| match value {
        _ if PLACES.contains(&field) => false,
        Value::Bool(_) | Value::Number(_) => true,
        Value::String(_) => TEXTS.contains(&field),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    };
    all.into_iter().filter(|(field, value)| shown(field, value)).collect()
}

/// Of a node's record, in the words of the contract. What is not known is left out.
pub(super) fn of_hardware(hardware: &Hardware) -> Map<String, Value> {
    let Hardware { worker_type, cpu_cores, memory_mib, storage_gib, gpu } = hardware;
    let mut fields = Map::new();
    let mut say = |field: &str, value: Value| _ = fields.insert(field.to_owned(), value);
    say("worker_type", worker_type.as_str().into());
    say("has_gpu", gpu.is_some().into());
    say("has_storage", (*worker_type == WorkerType::Storage).into());
    say("has_edge", (*worker_type == WorkerType::Edge).into());
    if *cpu_cores > 0 {
        say("cpu_cores", (*cpu_cores).into());
    }
    if *memory_mib > 0 {
        say("ram", format!("{}GB", memory_mib.div_ceil(1024)).into());
    }
    if *storage_gib > 0 {
        say("storage_gb", (*storage_gib).into());
    }
    if let Some(gpu) = gpu {
        say("gpu_type", gpu.name.as_str().into());
        say("gpu_memory", format!("{} MiB", gpu.memory_mib).into());
    }
    fields
}
