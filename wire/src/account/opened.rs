//! What is in a snapshot, opened and proven.
//!
//! Opening an envelope takes two operations on a curve, and each signature one more; for ten thousand tenants that is
//! seconds. None of it depends on anything but the segment's key and the bytes at hand, so a [`Memory`] has what came of the
//! bytes that were there before, and threads can share what is left ([`OpenSegment::work`]). Who may sign what depends on
//! the whole snapshot, and is judged anew each time.

mod memory;

use std::{collections::HashMap, fmt};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

pub use self::memory::{Memory, MemoryKey};
use super::{
    kms::{self, KmsFormError},
    signed::{self, Signers},
    snapshot::{Assignment, KmsConfig, LoggingConfig, SnapshotAnswer},
};
use crate::{
    envelope::{self, Binding, Claim, OpenError, PrivateKey, SegmentKey, Vendor, VerifyingKey},
    snapshot::{AssignmentDoc, KmsConfigDoc, TenantDoc},
};

/// Configurations or assignments in one piece of work: large enough to prove their signatures together, small enough for
/// threads to share a snapshot evenly (10 to 40 ms).
const WORK_ITEMS: usize = 512;

/// A segment's private key, with which envelopes of one epoch open.
#[derive(Debug)]
pub struct OpenSegment {
    vendor: Vendor,
    key: SegmentKey,
    private: PrivateKey,
    signers: Signers,
}

/// The configurations of a snapshot, as far as they are good: each opened, and made and assigned by somebody who may.
#[derive(Debug, Default)]
pub struct Configs {
    /// KMS configs, each number once.
    pub kms: Vec<KmsConfigDoc>,
    /// All tenants. An assignment of a KMS config that does not open is still there.
    pub tenants: Vec<TenantDoc>,
    /// What is not to be used.
    pub left_out: Vec<LeftOut>,
}

/// A KMS config that is not to be used, or not by this tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its number.
    pub kms: u64,
    /// The tenant; absent if nobody is to use it.
    pub tenant: Option<String>,
    /// Why.
    pub why: ConfigError,
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Its envelope does not open.
    Envelope(OpenError),
    /// Nobody signed it whom the vendor vouches for: the broker, or who has its database, made it up.
    NotSigned,
    /// Another one has its number.
    Twice,
    /// Its content is of a schema that this program does not know.
    UnknownSchema(u16),
    /// Its content has not the form that it should have.
    Form(KmsFormError),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envelope(why) => write!(f, "its envelope does not open: {why}"),
            Self::NotSigned => {
                f.write_str("nobody signed it whom the vendor vouches for: the broker made it up")
            }
            Self::Twice => f.write_str("another one has its number"),
            Self::UnknownSchema(schema) => write!(f, "schema {schema} is not known here"),
            Self::Form(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kms, tenant, why } = self;
        match tenant {
            None => write!(f, "KMS config {kms}: {why}"),
            Some(tenant) => write!(f, "KMS config {kms}, for tenant {tenant}: {why}"),
        }
    }
}

/// A hash over all that the result depends on.
type Inputs = [u8; 32];

/// A content, and whose signature under it is good.
struct Signed {
    signer: VerifyingKey,
    content: Zeroizing<Vec<u8>>,
}

/// What came of opening one envelope.
type Opened = Result<Signed, ConfigError>;

/// A part of what is to be done for a snapshot, on any thread.
#[derive(Debug)]
pub struct Work<'a> {
    segment: &'a OpenSegment,
    part: Part<'a>,
}

#[derive(Debug)]
enum Part<'a> {
    Configs(Vec<(Inputs, &'a KmsConfig)>),
    Assignments(Vec<(Inputs, &'a str, &'a Assignment)>),
}

/// What a piece of work came to.
#[derive(Default)]
pub struct Learned {
    contents: Vec<(Inputs, Opened)>,
    assignments: Vec<(Inputs, bool)>,
}

impl fmt::Debug for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (contents, assignments) = (self.contents.len(), self.assignments.len());
        write!(f, "Learned({contents} contents, {assignments} assignments)")
    }
}

impl Work<'_> {
    /// Does it.
    #[must_use]
    pub fn run(self) -> Learned {
        let mut learned = Learned::default();
        match self.part {
            Part::Configs(configs) => {
                let (inputs, configs): (Vec<_>, Vec<_>) = configs.into_iter().unzip();
                let opened = self.segment.opened(&configs);
                learned.contents = inputs.into_iter().zip(opened).collect();
            }
            Part::Assignments(assignments) => {
                let vendor = self.segment.vendor;
                let claims: Vec<_> = assignments
                    .iter()
                    .map(|(_, tenant, assignment)| {
                        signed::assignment_claim(vendor, tenant, assignment)
                    })
                    .collect();
                let there: Vec<_> = claims.iter().flatten().collect();
                let mut proven = envelope::prove(&there).into_iter();
                let proven = claims
                    .iter()
                    .map(|claim| claim.is_some() && proven.next() == Some(true));
                let inputs = assignments.iter().map(|(inputs, _, _)| *inputs);
                learned.assignments = inputs.zip(proven).collect();
            }
        }
        learned
    }
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

impl OpenSegment {
    pub(super) fn new(
        vendor: Vendor,
        key: SegmentKey,
        private: PrivateKey,
        signers: Signers,
    ) -> Self {
        Self {
            vendor,
            key,
            private,
            signers,
        }
    }

    /// What has to be done for `snapshot` and is not in `memory` yet. It may be done by several threads, in any order, or
    /// be left to [`Self::configs`].
    #[must_use]
    pub fn work<'a>(&'a self, snapshot: &'a SnapshotAnswer, memory: &Memory) -> Vec<Work<'a>> {
        let configs: Vec<_> = snapshot
            .kms_configs
            .iter()
            .filter(|config| config.schema == kms::SCHEMA)
            .map(|config| (self.inputs_of_config(config), config))
            .filter(|(inputs, _)| !memory.contents.contains_key(inputs))
            .collect();
        let assignments: Vec<_> = snapshot
            .tenants
            .iter()
            .flat_map(|tenant| {
                let all = tenant.assignments.iter();
                all.map(move |assignment| (tenant.id.as_str(), assignment))
            })
            .map(|(tenant, assignment)| {
                let inputs = self.inputs_of_assignment(tenant, assignment);
                (inputs, tenant, assignment)
            })
            .filter(|(inputs, _, _)| !memory.assignments.contains_key(inputs))
            .collect();
        let configs = configs
            .chunks(WORK_ITEMS)
            .map(|part| Part::Configs(part.to_vec()));
        let assignments = assignments
            .chunks(WORK_ITEMS)
            .map(|part| Part::Assignments(part.to_vec()));
        let work = |part| Work {
            segment: self,
            part,
        };
        configs.chain(assignments).map(work).collect()
    }

    /// All KMS configs and tenants, as far as they are good. `memory` loses what is not of this snapshot, and gains what was
    /// not done before, which takes the time of two X25519 operations and a signature's check per config, and another check
    /// per assignment.
    #[must_use]
    pub fn configs(&self, snapshot: &SnapshotAnswer, memory: &mut Memory) -> Configs {
        for work in self.work(snapshot, memory) {
            memory.learn(work.run());
        }
        let mut kept = Memory {
            contents: HashMap::with_capacity(snapshot.kms_configs.len()),
            assignments: HashMap::with_capacity(memory.assignments.len()),
        };
        let mut configs = Configs::default();
        let mut makers = HashMap::with_capacity(snapshot.kms_configs.len());
        for config in &snapshot.kms_configs {
            let found = if makers.contains_key(&config.id) {
                Err(ConfigError::Twice)
            } else {
                self.kms_config(config, memory, &mut kept)
            };
            match found {
                Ok((signer, doc)) => {
                    makers.insert(config.id, signer);
                    configs.kms.push(doc);
                }
                Err(why) => configs.left_out.push(LeftOut {
                    kms: config.id,
                    tenant: None,
                    why,
                }),
            }
        }
        for tenant in &snapshot.tenants {
            let mut assignments = Vec::with_capacity(tenant.assignments.len());
            for assignment in &tenant.assignments {
                let inputs = self.inputs_of_assignment(&tenant.id, assignment);
                let proven = memory.assignments.get(&inputs).copied();
                let proven = proven.unwrap_or_default();
                kept.assignments.insert(inputs, proven);
                let maker = makers.get(&assignment.kms);
                if let Some(maker) = maker
                    && !(proven && self.signers.may_assign(maker, &tenant.id, assignment))
                {
                    configs.left_out.push(LeftOut {
                        kms: assignment.kms,
                        tenant: Some(tenant.id.clone()),
                        why: ConfigError::NotSigned,
                    });
                    continue;
                }
                assignments.push(AssignmentDoc {
                    kms: i64::try_from(assignment.kms).unwrap_or(i64::MAX),
                    active: assignment.active,
                    primary: assignment.primary,
                });
            }
            configs.tenants.push(TenantDoc {
                id: tenant.id.clone(),
                assignments,
            });
        }
        *memory = kept;
        configs
    }

    /// Opens the logging configuration of `tenant`, and makes sure of who made it: JSON, which the log driver understands.
    ///
    /// # Errors
    /// [`ConfigError::Envelope`], [`ConfigError::NotSigned`].
    pub fn logging_config(
        &self,
        tenant: &str,
        config: &LoggingConfig,
    ) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
        let binding = config.binding(self.vendor);
        let opened = self.open(&binding, &config.envelope)?;
        let (signer, content) =
            signed::verified(&binding, tenant, &opened).ok_or(ConfigError::NotSigned)?;
        if self.signers.speaks_for(&signer, tenant) {
            Ok(Zeroizing::new(content.to_vec()))
        } else {
            Err(ConfigError::NotSigned)
        }
    }

    /// One KMS config and who signed it, by what `memory` has of it, which moves to `kept`.
    fn kms_config(
        &self,
        config: &KmsConfig,
        memory: &mut Memory,
        kept: &mut Memory,
    ) -> Result<(VerifyingKey, KmsConfigDoc), ConfigError> {
        if config.schema != kms::SCHEMA {
            return Err(ConfigError::UnknownSchema(config.schema));
        }
        let inputs = self.inputs_of_config(config);
        let opened = kept.contents.entry(inputs).or_insert_with(|| {
            let opened = memory.contents.remove(&inputs);
            opened.unwrap_or(Err(ConfigError::NotSigned))
        });
        let Signed { signer, content } = opened.as_ref().map_err(Clone::clone)?;
        if !self.signers.knows(signer) {
            return Err(ConfigError::NotSigned);
        }
        let id = i64::try_from(config.id).unwrap_or(i64::MAX);
        let doc = kms::parse(id, config.leasing_allowed, content).map_err(ConfigError::Form)?;
        Ok((*signer, doc))
    }

    /// Opens envelopes, and proves the signatures in them.
    fn opened(&self, configs: &[&KmsConfig]) -> Vec<Opened> {
        let claimed: Vec<_> = configs.iter().map(|config| self.claimed(config)).collect();
        let claims: Vec<_> = claimed.iter().flatten().map(|(claim, _)| claim).collect();
        // One for each that was opened, in their order.
        let mut proven = envelope::prove(&claims).into_iter();
        let judged = claimed.into_iter().map(|claimed| -> Opened {
            let (Claim { key, .. }, content) = claimed?;
            if proven.next() == Some(true) {
                let signer = key;
                Ok(Signed { signer, content })
            } else {
                Err(ConfigError::NotSigned)
            }
        });
        judged.collect()
    }

    /// Opens an envelope, and takes what is in it apart.
    fn claimed(&self, config: &KmsConfig) -> Result<(Claim, Zeroizing<Vec<u8>>), ConfigError> {
        let binding = config.binding(self.vendor);
        let opened = self.open(&binding, &config.envelope)?;
        let claimed = signed::content_claim(&binding, "", &opened);
        let (claim, content) = claimed.ok_or(ConfigError::NotSigned)?;
        Ok((claim, Zeroizing::new(content.to_vec())))
    }

    fn open(&self, binding: &Binding, envelope: &[u8]) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
        envelope::open(&self.private, self.key.epoch, binding, envelope)
            .map_err(ConfigError::Envelope)
    }

    fn inputs(&self, kind: &[u8]) -> Sha256 {
        Sha256::new_with_prefix(kind)
            .chain_update(self.vendor.segment.to_be_bytes())
            .chain_update(self.vendor.fingerprint.as_bytes())
            .chain_update(self.key.epoch.0.to_be_bytes())
            .chain_update(self.key.public.as_bytes())
    }

    /// All parts but the last are of a fixed size.
    fn inputs_of_config(&self, config: &KmsConfig) -> Inputs {
        self.inputs(b"tsp opened config 1")
            .chain_update(config.schema.to_be_bytes())
            .chain_update(config.id.to_be_bytes())
            .chain_update(config.revision.to_be_bytes())
            .chain_update(&config.envelope)
            .finalize()
            .into()
    }

    /// Likewise, once the two that come from outside have their lengths before them.
    fn inputs_of_assignment(&self, tenant: &str, assignment: &Assignment) -> Inputs {
        self.inputs(b"tsp proven assignment 1")
            .chain_update(assignment.kms.to_be_bytes())
            .chain_update(length(assignment.signer.len()))
            .chain_update(&assignment.signer)
            .chain_update(length(assignment.signature.len()))
            .chain_update(&assignment.signature)
            .chain_update(tenant)
            .finalize()
            .into()
    }
}

#[cfg(test)]
mod tests;
