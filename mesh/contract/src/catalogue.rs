//! The catalogue: which services coordinators assign, and by what other names clients ask for services. Data, not code:
//! `catalogue.toml` is built in, and an operator may give another file.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::LazyLock;

use hedgerow_proto::id::ServiceName;
use hedgerow_proto::record::WorkerType;
use serde::{Deserialize, Serialize};

/// A service that can be assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// The port that an agent serves it at.
    pub port: NonZeroU16,
    /// How urgent it is: the lowest number first.
    pub priority: u8,
    /// For which type of worker it is.
    pub worker_type: WorkerType,
}

/// A service, as the answer to a registration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceConfig {
    /// Its name.
    pub name: ServiceName,
    /// The port that the agent serves it at.
    pub port: NonZeroU16,
    /// How urgent it is.
    pub priority: u8,
}

impl From<&Service> for ServiceConfig {
    fn from(service: &Service) -> Self {
        Self { name: service.name.clone(), port: service.port, priority: service.priority }
    }
}

/// A catalogue that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    services: Vec<Service>,
    aliases: BTreeMap<ServiceName, ServiceName>,
}

/// The file, as it is written; [`Catalogue::try_from`] checks it. Keys that are not known are errors.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueFile {
    #[serde(default)]
    service: Vec<ServiceEntry>,
    #[serde(default)]
    aliases: BTreeMap<ServiceName, ServiceName>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceEntry {
    name: ServiceName,
    #[serde(rename = "type")]
    worker_type: String,
    port: NonZeroU16,
    priority: u8,
}

/// Why a file is no catalogue. For the operator to put right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// Not TOML, a key that is not known, or a value that its key does not take.
    #[error("{0}")]
    Form(#[from] toml::de::Error),
    /// A service for no type of worker.
    #[error("service {name}: the type {worker_type:?} is none of gpu, cpu, storage, edge")]
    WorkerType {
        /// The service.
        name: ServiceName,
        /// What stands there.
        worker_type: String,
    },
    /// A service that is named twice.
    #[error("service {0} stands there twice")]
    Twice(ServiceName),
    /// More than anybody assigns.
    #[error("{got} services, over the limit of {} (Catalogue::SERVICES_MAX)", Catalogue::SERVICES_MAX)]
    TooMany {
        /// How many.
        got: usize,
    },
    /// An alias of an alias: only one of the two would be followed.
    #[error("alias {alias} stands for {target}, which is an alias itself; let it stand for the service")]
    AliasOfAlias {
        /// The alias.
        alias: ServiceName,
        /// What it stands for.
        target: ServiceName,
    },
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::built_in().clone()
    }
}

impl Catalogue {
    /// Services in a catalogue at most: each registration looks at all of them, and more are not a catalogue but a mistake.
    pub const SERVICES_MAX: usize = 256;

    /// The one that is built in.
    pub fn built_in() -> &'static Self {
        static BUILT_IN: LazyLock<Catalogue> = LazyLock::new(|| {
            // The text is part of the program, and a test reads it: there is no catalogue to run with if it is wrong.
            Catalogue::parse(include_str!("catalogue.toml")).expect("the built-in catalogue is one")
        });
        &BUILT_IN
    }

    /// Reads a catalogue from the text of a file. (A program whose other files name the nearest key for one that is not
    /// known reads a [`CatalogueFile`] in the same way instead.)
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        toml::from_str::<CatalogueFile>(text)?.try_into()
    }

    /// The services, in the order of the file.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The service of this name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name.as_str() == name)
    }

    /// Other names of services, with what each stands for.
    pub fn aliases(&self) -> &BTreeMap<ServiceName, ServiceName> {
        &self.aliases
    }

    /// What a name stands for where nobody offers a service of the name itself.
    pub fn resolve<'a>(&'a self, name: &'a ServiceName) -> &'a ServiceName {
        self.aliases.get(name).unwrap_or(name)
    }

    /// The services for which a worker of this type is eligible. A gpu worker has a processor too.
    pub fn eligible(&self, worker_type: WorkerType) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(move |service| {
            let does_too = (worker_type, service.worker_type) == (WorkerType::Gpu, WorkerType::Cpu);
            service.worker_type == worker_type || does_too
        })
    }
}

impl TryFrom<CatalogueFile> for Catalogue {
    type Error = CatalogueError;
    fn try_from(file: CatalogueFile) -> Result<Self, CatalogueError> {
        let got = file.service.len();
        if got > Self::SERVICES_MAX {
            return Err(CatalogueError::TooMany { got });
        }
        let mut services: Vec<Service> = Vec::with_capacity(got);
        for ServiceEntry { name, worker_type, port, priority } in file.service {
            let Ok(worker_type) = worker_type.parse() else {
                return Err(CatalogueError::WorkerType { name, worker_type });
            };
            if services.iter().any(|service| service.name == name) {
                return Err(CatalogueError::Twice(name));
            }
            services.push(Service { name, port, priority, worker_type });
        }
        let aliases = file.aliases;
        if let Some((alias, target)) = aliases.iter().find(|(_, target)| aliases.contains_key(*target)) {
            return Err(CatalogueError::AliasOfAlias { alias: alias.clone(), target: target.clone() });
        }
        Ok(Self { services, aliases })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Catalogue::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_built_in_catalogue_is_that_of_the_contract() {
        let catalogue = Catalogue::built_in();
        let shown = |worker_type: WorkerType| {
            let services = catalogue.services().iter().filter(|service| service.worker_type == worker_type);
            let shown = services.map(|service| format!("{}:{}/{}", service.name, service.port, service.priority));
            shown.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(shown(WorkerType::Gpu), "llm-inference:8105/1, vision-ocr:8104/1, rag-embeddings:8102/2");
        assert_eq!(shown(WorkerType::Cpu), "ner-extraction:8108/2, document-processing:8103/2, notes-coa:8100/3");
        assert_eq!(
            shown(WorkerType::Storage),
            "chromadb:8000/1, redis:6379/2, postgres:5432/3, minio:9000/4, neo4j:7474/5"
        );
        assert_eq!(shown(WorkerType::Edge), "coordinator:8080/1, edge-proxy:8787/1, load-balancer:8090/2");
        let aliases: Vec<_> = catalogue.aliases().iter().map(|(alias, name)| format!("{alias}→{name}")).collect();
        assert_eq!(
            aliases.join(" "),
            "llm→llm-inference ner→ner-extraction notes→notes-coa ocr→vision-ocr rag→rag-embeddings \
             upload→document-processing"
        );
        for target in catalogue.aliases().values() {
            assert!(catalogue.service(target.as_str()).is_some(), "{target}");
        }
    }

    #[test]
    fn a_gpu_worker_is_eligible_for_cpu_services_too() {
        let count = |worker_type| Catalogue::built_in().eligible(worker_type).count();
        assert_eq!(WorkerType::ALL.map(count), [6, 3, 5, 3]);
    }

    #[test]
    fn an_alias_stands_for_its_service_and_any_other_name_for_itself() {
        let resolved = |name| Catalogue::built_in().resolve(&ServiceName::new(name).unwrap()).to_string();
        assert_eq!((resolved("ocr"), resolved("my-own")), ("vision-ocr".into(), "my-own".into()));
    }

    #[test]
    fn a_file_that_is_no_catalogue_says_why() {
        let service = "[[service]]\nname = 'a'\ntype = 'cpu'\nport = 1\npriority = 1\n";
        assert!(Catalogue::parse(service).is_ok() && Catalogue::parse("").is_ok());
        assert!(error("[[service]]\nname = 'a'\nprt = 1").contains("unknown field `prt`"));
        assert!(error("[alias]").contains("unknown field `alias`"));
        assert!(error(&service.replace("port = 1", "port = 0")).contains("port = 0"));
        assert!(error(&service.replace("'a'", "'a b'")).contains("service name"));
        assert!(error(&service.replace("cpu", "tpu")).contains("\"tpu\" is none of gpu, cpu"));
        assert!(error(&service.repeat(2)).contains("a stands there twice"));
        assert!(error("[aliases]\na = 'b'\nb = 'c'").contains("alias a stands for b"));
        let many: String = (0..257).map(|n| service.replace("'a'", &format!("'a{n}'"))).collect();
        assert!(error(&many).contains("257 services"));
    }
}
