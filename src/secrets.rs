//! Tenant secrets as the control plane keeps them, wrapped: which there are, and how one is added and rotated.
//!
//! [`Secrets`] holds the rules. Where it lies between two changes is another matter: in a file that several proxies share
//! ([`file`]), or in memory for `tsp dev`. A broker has rules of its own, the same ([`broker`]). The keeper's thread ([`keeper`]) stores what shards offer; [`command`] is
//! `tsp secrets`.

pub(crate) mod broker;
pub(crate) mod command;
pub(crate) mod file;
pub(crate) mod keeper;

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
};

use time::OffsetDateTime;
use tsp_shards::SecretOffer;
use tsp_wire::{
    TenantSecretId,
    derive::{RotationStatus, SecretType},
    edek::EncryptedDeks,
    snapshot::TenantSecretDoc,
};

/// One tenant secret, wrapped, and what an operator wants to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: TenantSecretId,
    pub(crate) place: Place,
    pub(crate) status: RotationStatus,
    pub(crate) created: OffsetDateTime,
    /// When it came into its status.
    pub(crate) changed: OffsetDateTime,
    /// The secret as the tenant's KMS wrapped it.
    pub(crate) edek: Vec<u8>,
}

/// What a secret is for. Of the secrets of one place at most one is current, and at most one in rotation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) tenant: String,
    pub(crate) secret_type: SecretType,
    pub(crate) path: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tenant,
            secret_type,
            path,
        } = self;
        write!(f, "tenant {tenant:?}, {secret_type}, path {path:?}")
    }
}

impl Record {
    pub(crate) fn to_doc(&self) -> TenantSecretDoc {
        TenantSecretDoc {
            id: self.id.number().into(),
            tenant: self.place.tenant.clone(),
            secret_type: self.place.secret_type,
            path: self.place.path.clone(),
            status: self.status,
            edek: self.edek.clone(),
        }
    }

    /// The KMS config that wrapped it.
    pub(crate) fn kms(&self) -> Option<i32> {
        let edeks = EncryptedDeks::from_bytes(&self.edek).ok()?;
        Some(edeks.encrypted_deks.first()?.kms_config_id)
    }
}

/// Why a secret cannot be added, or not as asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Another one has its number.
    SameId(TenantSecretId),
    /// The place has one of this status.
    SameStatus(TenantSecretId, RotationStatus),
    /// There is nothing that could be rotated.
    NoCurrent,
    /// A rotation is under way.
    InRotation(TenantSecretId),
    /// There is no rotation to end.
    NotInRotation,
    /// Nobody has derived a key since the rotation began, so nothing can be encrypted anew.
    NoNewCurrent,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameId(id) => write!(f, "there are two secrets with the id {id}"),
            Self::SameStatus(id, status) => {
                write!(f, "secret {id} of the same path is {status} too")
            }
            Self::NoCurrent => f.write_str(
                "there is no current secret, so there is nothing to rotate; the first derivation makes one",
            ),
            Self::InRotation(id) => write!(
                f,
                "secret {id} is in rotation already; commit that rotation first, when all its data is encrypted anew"
            ),
            Self::NotInRotation => f.write_str("no rotation is under way"),
            Self::NoNewCurrent => f.write_str(
                "there is no new current secret yet: no key was derived since the rotation began, so no data can have \
                 been encrypted anew",
            ),
        }
    }
}

/// All tenant secrets.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    records: Vec<Record>,
    ids: HashSet<TenantSecretId>,
    places: HashMap<Place, Active>,
}

/// Positions of the records of a place that keys are derived from.
#[derive(Clone, Copy, Debug, Default)]
struct Active {
    current: Option<usize>,
    in_rotation: Option<usize>,
}

impl Secrets {
    /// Adds a record that exists already.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn add(&mut self, record: Record) -> Result<(), Refusal> {
        if self.ids.contains(&record.id) {
            return Err(Refusal::SameId(record.id));
        }
        let active = self.places.entry(record.place.clone()).or_default();
        let position = match record.status {
            RotationStatus::Current => Some(&mut active.current),
            RotationStatus::InRotation => Some(&mut active.in_rotation),
            RotationStatus::Archived => None,
        };
        if let Some(position) = position {
            if let Some(first) = position.and_then(|first| self.records.get(first)) {
                return Err(Refusal::SameStatus(first.id, record.status));
            }
            *position = Some(self.records.len());
        }
        self.ids.insert(record.id);
        self.records.push(record);
        Ok(())
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(crate) fn to_docs(&self) -> Vec<TenantSecretDoc> {
        self.records.iter().map(Record::to_doc).collect()
    }

    /// The current secret of the offer's place, and whether it is the one that is offered, which happens if there was
    /// none: create if absent.
    ///
    /// # Errors
    /// If the kernel gives no random bytes for a number.
    pub(crate) fn take(
        &mut self,
        offer: &SecretOffer,
        now: OffsetDateTime,
    ) -> io::Result<(TenantSecretDoc, Taken)> {
        let place = Place {
            tenant: offer.tenant.as_str().to_owned(),
            secret_type: offer.secret_type,
            path: offer.path.to_string(),
        };
        let active = self.places.get(&place).copied().unwrap_or_default();
        if let Some(there) = active.current.and_then(|at| self.records.get(at)) {
            return Ok((there.to_doc(), Taken::WasThere));
        }
        let record = Record {
            id: self.new_id()?,
            place,
            status: RotationStatus::Current,
            created: now,
            changed: now,
            edek: offer.edek.clone(),
        };
        let doc = record.to_doc();
        self.add(record)
            .map_err(|why| io::Error::other(why.to_string()))?;
        Ok((doc, Taken::New))
    }

    /// A number that no secret has or had. Random, so that a number is not used twice either when an old backup is put
    /// back, or when two installations are joined.
    fn new_id(&self) -> io::Result<TenantSecretId> {
        loop {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).map_err(io::Error::other)?;
            let id = TenantSecretId::new(u32::from_le_bytes(bytes).into());
            if let Some(id) = id.filter(|id| !self.ids.contains(id)) {
                return Ok(id);
            }
        }
    }

    /// Begins a rotation: the current secret gives way to the one that the next derivation makes.
    ///
    /// # Errors
    /// [`Refusal::NoCurrent`], [`Refusal::InRotation`].
    pub(crate) fn begin_rotation(
        &mut self,
        place: &Place,
        now: OffsetDateTime,
    ) -> Result<Record, Refusal> {
        let active = self.places.get_mut(place).ok_or(Refusal::NoCurrent)?;
        if let Some(under_way) = active.in_rotation.and_then(|at| self.records.get(at)) {
            return Err(Refusal::InRotation(under_way.id));
        }
        let at = active.current.ok_or(Refusal::NoCurrent)?;
        let record = self.records.get_mut(at).ok_or(Refusal::NoCurrent)?;
        (active.current, active.in_rotation) = (None, Some(at));
        (record.status, record.changed) = (RotationStatus::InRotation, now);
        Ok(record.clone())
    }

    /// Ends a rotation: the old secret's keys are not handed out any more.
    ///
    /// # Errors
    /// [`Refusal::NotInRotation`], [`Refusal::NoNewCurrent`].
    pub(crate) fn commit_rotation(
        &mut self,
        place: &Place,
        now: OffsetDateTime,
    ) -> Result<Record, Refusal> {
        let active = self.places.get_mut(place).ok_or(Refusal::NotInRotation)?;
        let at = active.in_rotation.ok_or(Refusal::NotInRotation)?;
        if active.current.is_none() {
            return Err(Refusal::NoNewCurrent);
        }
        let record = self.records.get_mut(at).ok_or(Refusal::NotInRotation)?;
        active.in_rotation = None;
        (record.status, record.changed) = (RotationStatus::Archived, now);
        Ok(record.clone())
    }
}

/// Whose secret an offer's place has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The one that was offered.
    New,
    /// Another one.
    WasThere,
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::sync::oneshot;
    use tsp_wire::{KmsConfigId, TenantId, edek};

    use super::*;

    pub(crate) fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    /// An offer, and where its reply comes.
    pub(crate) fn offer(
        tenant: &str,
        path: &str,
        blob: &[u8],
    ) -> (
        SecretOffer,
        oneshot::Receiver<Result<TenantSecretDoc, tsp_shards::SecretNotStored>>,
    ) {
        let (reply, answer) = oneshot::channel();
        let offer = SecretOffer {
            tenant: TenantId::new(tenant).unwrap(),
            secret_type: SecretType::Deterministic,
            path: path.into(),
            edek: edek::encode_unleased(KmsConfigId::new(41).unwrap(), blob),
            reply,
        };
        (offer, answer)
    }

    pub(crate) fn place(tenant: &str, path: &str) -> Place {
        Place {
            tenant: tenant.to_owned(),
            secret_type: SecretType::Deterministic,
            path: path.to_owned(),
        }
    }

    #[test]
    fn the_first_offer_is_taken_and_the_next_gets_the_first() {
        let mut secrets = Secrets::default();
        let (first, _) = offer("acme", "p", b"first");
        let (second, _) = offer("acme", "p", b"second");
        let (taken, how) = secrets.take(&first, at(1)).unwrap();
        assert_eq!((how, &taken.edek), (Taken::New, &first.edek));
        assert_eq!(
            secrets.take(&second, at(2)).unwrap(),
            (taken, Taken::WasThere)
        );
        for other in [offer("acme", "", b"x").0, offer("globex", "p", b"x").0] {
            assert_eq!(secrets.take(&other, at(3)).unwrap().1, Taken::New);
        }
        let ids: HashSet<_> = secrets.records().iter().map(|record| record.id).collect();
        assert_eq!((secrets.records().len(), ids.len()), (3, 3));
        assert_eq!(secrets.records()[0].kms(), Some(41));
    }

    #[test]
    fn a_secret_goes_from_current_to_rotation_to_archive() {
        let mut secrets = Secrets::default();
        let acme = place("acme", "p");
        let refused = secrets.begin_rotation(&acme, at(0));
        assert_eq!(refused, Err(Refusal::NoCurrent));
        assert_eq!(
            secrets.commit_rotation(&acme, at(0)),
            Err(Refusal::NotInRotation)
        );

        let (first, _) = secrets.take(&offer("acme", "p", b"1").0, at(1)).unwrap();
        let rotating = secrets.begin_rotation(&acme, at(2)).unwrap();
        assert_eq!(u64::from(rotating.id.number()), first.id);
        assert_eq!((rotating.created, rotating.changed), (at(1), at(2)));
        assert_eq!(
            secrets.commit_rotation(&acme, at(3)),
            Err(Refusal::NoNewCurrent)
        );
        let refused = secrets.begin_rotation(&acme, at(3));
        assert_eq!(refused, Err(Refusal::InRotation(rotating.id)));

        let (second, how) = secrets.take(&offer("acme", "p", b"2").0, at(4)).unwrap();
        assert_eq!(how, Taken::New);
        let refused = secrets.begin_rotation(&acme, at(5));
        assert_eq!(refused, Err(Refusal::InRotation(rotating.id)));
        let archived = secrets.commit_rotation(&acme, at(6)).unwrap();
        assert_eq!(
            (archived.id, archived.status),
            (rotating.id, RotationStatus::Archived)
        );
        let refused = secrets.commit_rotation(&acme, at(7));
        assert_eq!(refused, Err(Refusal::NotInRotation));
        let rotating = secrets.begin_rotation(&acme, at(8)).unwrap();
        assert_eq!(u64::from(rotating.id.number()), second.id);
    }

    #[test]
    fn what_breaks_a_rule_is_not_added() {
        use RotationStatus::{Archived, Current, InRotation};
        let record = |id, status| Record {
            id: TenantSecretId::new(id).unwrap(),
            place: place("acme", "p"),
            status,
            created: at(0),
            changed: at(0),
            edek: Vec::new(),
        };
        let mut secrets = Secrets::default();
        for (id, status) in [(1, Current), (2, InRotation), (3, Archived), (4, Archived)] {
            secrets.add(record(id, status)).unwrap();
        }
        let id = |number| TenantSecretId::new(number).unwrap();
        for (new, why) in [
            (record(4, Archived), Refusal::SameId(id(4))),
            (record(5, Current), Refusal::SameStatus(id(1), Current)),
            (
                record(5, InRotation),
                Refusal::SameStatus(id(2), InRotation),
            ),
        ] {
            assert_eq!(secrets.add(new), Err(why));
        }
        assert_eq!(secrets.records().len(), 4);
    }
}
