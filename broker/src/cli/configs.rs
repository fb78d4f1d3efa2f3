//! KMS configs and logging configurations: signed and sealed here, for the vendor's own proxies, or by a tenant for those of a vendor
//! that it is a tenant of.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use hyper::Method;
use serde::Deserialize;
use serde_json::json;
use tsp_wire::{
    account::kms,
    envelope::{ENVELOPE_BYTES_MAX, Kind},
    logging,
};
use zeroize::Zeroizing;

use super::{
    Kms, Logging, Who,
    commands::{Desk, Done, FAILED, print, print_json, segment_of},
    organization::{Link, link_of},
};
use crate::{
    keys::{Object, Sealer, VendorKeys},
    model::{
        AssignOwn, AssignmentState, KmsDoc, KmsSummary, LoggingDoc, LoggingState, OrganizationKind,
        OwnAssignment, SealedContent, Share,
    },
};

/// A file's content, which may be secret.
fn content_of(path: &Path) -> Done<Zeroizing<Vec<u8>>> {
    let failed = |why: io::Error| format!("{} cannot be read: {why}", path.display());
    // Room for all of it and one more, so that nothing is left behind by a reallocation.
    let mut content = Zeroizing::new(Vec::with_capacity(ENVELOPE_BYTES_MAX + 1));
    let limit = u64::try_from(ENVELOPE_BYTES_MAX).unwrap_or(u64::MAX);
    if path == Path::new("-") {
        io::stdin().take(limit).read_to_end(&mut content)
    } else {
        let file = fs::File::open(path).map_err(failed)?;
        file.take(limit).read_to_end(&mut content)
    }
    .map_err(failed)?;
    Ok(content)
}

pub(super) async fn kms(command: Kms) -> Done {
    let active = |primary| AssignmentState {
        active: true,
        primary,
    };
    match command {
        Kms::Create { who, file, leasing } => {
            let content = content_of(&file)?;
            let desk = Desk::open(&who).await?;
            let id = desk.reserve().await?;
            let doc = sealed_kms(desk.keys()?, id, 1, leasing, &content)?;
            desk.tell(Method::POST, "/admin/1/kms", &doc).await?;
            print(&format!("{id}\n"))?;
            desk.close().await
        }
        Kms::Update {
            who,
            id,
            file,
            leasing,
        } => {
            let content = content_of(&file)?;
            let desk = Desk::open(&who).await?;
            update(&desk, id, leasing, &content).await?;
            desk.close().await
        }
        Kms::Leasing { who, id, allowed } => {
            let desk = Desk::open(&who).await?;
            let content = own_content(&desk, id).await?.1;
            update(&desk, id, allowed, &content).await?;
            desk.close().await
        }
        Kms::List { who } => {
            let desk = Desk::open(&who).await?;
            let configs: Vec<KmsSummary> = desk.get("/admin/1/kms").await?;
            print_json(&configs)?;
            desk.close().await
        }
        Kms::Assign {
            who,
            id,
            tenant,
            vendor,
            primary,
        } => assign(&who, id, &tenant, vendor, active(primary)).await,
        Kms::Primary {
            who,
            id,
            tenant,
            vendor,
        } => assign(&who, id, &tenant, vendor, active(true)).await,
        Kms::Disable {
            who,
            id,
            tenant,
            vendor,
        } => {
            let disabled = AssignmentState {
                active: false,
                primary: false,
            };
            assign(&who, id, &tenant, vendor, disabled).await
        }
        Kms::Unassign {
            who,
            id,
            tenant,
            vendor,
        } => {
            let desk = Desk::open(&who).await?;
            let path = match desk.kind {
                OrganizationKind::Vendor => {
                    format!("/admin/1/kms/{id}/tenants/{}", segment_of(&tenant))
                }
                OrganizationKind::Tenant => {
                    let link = link_of(&desk, &tenant, vendor).await?;
                    format!("{}/kms/{id}", link.path())
                }
            };
            desk.tell(Method::DELETE, &path, &json!({})).await?;
            desk.close().await
        }
        Kms::Delete { who, id } => {
            let desk = Desk::open(&who).await?;
            let path = format!("/admin/1/kms/{id}");
            desk.tell(Method::DELETE, &path, &json!({})).await?;
            desk.close().await
        }
    }
}

async fn summary(desk: &Desk, id: i64) -> Done<KmsSummary> {
    let configs: Vec<KmsSummary> = desk.get("/admin/1/kms").await?;
    let mut configs = configs.into_iter();
    let there = configs.find(|config| config.id == id);
    there.ok_or_else(|| "there is no such KMS config".to_owned())
}

/// The content of one of the organization's own configs, and what it is.
async fn own_content(desk: &Desk, id: i64) -> Done<(Object, Zeroizing<Vec<u8>>)> {
    let there: SealedContent = desk.get(&format!("/admin/1/kms/{id}")).await?;
    let object = Object {
        kind: Kind::KmsConfig,
        id,
        schema: there.schema,
        revision: there.revision,
    };
    let content = desk.keys()?.content(&object, &there.envelope);
    let content = content.ok_or(
        "the KMS config is not as an admin of this organization sealed it: the broker changed it",
    )?;
    Ok((object, content))
}

/// Gives a config new contents; a tenant's, also as the vendor's proxies open it.
async fn update(desk: &Desk, id: i64, leasing: bool, content: &[u8]) -> Done {
    let there = summary(desk, id).await?;
    let revision = there.revision + 1;
    let mut doc = sealed_kms(desk.keys()?, id, revision, leasing, content)?;
    if desk.kind == OrganizationKind::Tenant
        && let Some(tenant) = there.tenants.keys().next()
    {
        let link = link_of(desk, tenant, Some(there.vendor)).await?;
        doc.share = Some(share(&link.sealer(desk.keys()?)?, id, revision, content)?);
    }
    let path = format!("/admin/1/kms/{id}");
    desk.tell(Method::PUT, &path, &doc).await
}

fn share(sealer: &Sealer<'_>, id: i64, revision: i64, content: &[u8]) -> Done<Share> {
    let object = Object {
        kind: Kind::KmsConfig,
        id,
        schema: kms::SCHEMA,
        revision,
    };
    let envelope = sealer.seal(&object, "", content);
    Ok(Share {
        revision,
        epoch: sealer.key.epoch.0,
        envelope: envelope.ok_or("the KMS config is too large")?,
    })
}

async fn assign(
    who: &Who,
    id: i64,
    tenant: &str,
    vendor: Option<i64>,
    state: AssignmentState,
) -> Done {
    let desk = Desk::open(who).await?;
    if desk.kind == OrganizationKind::Vendor {
        let path = format!("/admin/1/kms/{id}/tenants/{}", segment_of(tenant));
        let sealer = desk.keys()?.sealer();
        let assignment = sealer.assign(id, tenant, state).ok_or(FAILED)?;
        desk.tell(Method::PUT, &path, &assignment).await?;
        return desk.close().await;
    }
    let link = link_of(&desk, tenant, vendor).await?;
    let of_vendors = link
        .doc
        .assignments
        .iter()
        .any(|there| there.kms == id && !there.own);
    let own = if of_vendors {
        None
    } else {
        let (object, content) = own_content(&desk, id).await?;
        let sealer = link.sealer(desk.keys()?)?;
        let signed = sealer.assign(id, tenant, state).ok_or(FAILED)?;
        Some(OwnAssignment {
            signer: signed.signer,
            signature: signed.signature,
            share: share(&sealer, id, object.revision, &content)?,
        })
    };
    let path = format!("{}/kms/{id}", link.path());
    desk.tell(Method::PUT, &path, &AssignOwn { state, own })
        .await?;
    desk.close().await
}

/// Checks a KMS config's form, and seals it to the organization's own key.
fn sealed_kms(
    keys: &VendorKeys,
    id: i64,
    revision: i64,
    leasing_allowed: bool,
    content: &[u8],
) -> Done<KmsDoc> {
    #[derive(Deserialize)]
    struct KeyPath {
        #[serde(default)]
        key_path: serde_json::Value,
    }
    let kind = kms::kind(content).map_err(|why| why.to_string())?;
    kms::parse(id, leasing_allowed, content).map_err(|why| why.to_string())?;
    let KeyPath { key_path } = serde_json::from_slice(content).map_err(|why| why.to_string())?;
    let object = Object {
        kind: Kind::KmsConfig,
        id,
        schema: kms::SCHEMA,
        revision,
    };
    let envelope = keys.sealer().seal(&object, "", content);
    let path = keys.sealer().path(id, kind, &key_path);
    Ok(KmsDoc {
        id,
        kind: kind.to_owned(),
        key_path,
        schema: kms::SCHEMA,
        revision,
        epoch: keys.epoch.0,
        leasing_allowed,
        envelope: envelope.ok_or("the KMS config is too large")?,
        path: path.ok_or(FAILED)?,
        share: None,
    })
}

pub(super) async fn logging(command: Logging) -> Done {
    match command {
        Logging::Set {
            who,
            tenant,
            vendor,
            file,
        } => {
            let content = content_of(&file)?;
            logging::SinkConfig::parse(&content).map_err(|why| why.to_string())?;
            let desk = Desk::open(&who).await?;
            let at = Logs::of(&desk, &tenant, vendor).await?;
            let id = if at.there.id == 0 {
                desk.reserve().await?
            } else {
                at.there.id
            };
            let object = Object {
                kind: Kind::LoggingConfig,
                id,
                schema: logging::SCHEMA,
                revision: at.there.revision + 1,
            };
            let keys = desk.keys()?;
            let sealer = match &at.link {
                None => keys.sealer(),
                Some(link) => link.sealer(keys)?,
            };
            let envelope = sealer.seal(&object, &tenant, &content);
            let doc = LoggingDoc {
                id,
                schema: object.schema,
                revision: object.revision,
                epoch: sealer.key.epoch.0,
                envelope: envelope.ok_or("the logging configuration is too large")?,
            };
            desk.tell(Method::PUT, &at.path, &doc).await?;
            desk.close().await
        }
        Logging::Remove {
            who,
            tenant,
            vendor,
        } => {
            let desk = Desk::open(&who).await?;
            let at = Logs::of(&desk, &tenant, vendor).await?;
            desk.tell(Method::DELETE, &at.path, &json!({})).await?;
            desk.close().await
        }
    }
}

/// Where a tenant's logging configuration is, for whoever asks.
struct Logs {
    path: String,
    there: LoggingState,
    link: Option<Link>,
}

impl Logs {
    async fn of(desk: &Desk, tenant: &str, vendor: Option<i64>) -> Done<Self> {
        if desk.kind == OrganizationKind::Vendor {
            let path = format!("/admin/1/tenants/{}/logging", segment_of(tenant));
            return Ok(Self {
                there: desk.get(&path).await?,
                path,
                link: None,
            });
        }
        let link = link_of(desk, tenant, vendor).await?;
        Ok(Self {
            path: format!("{}/logging", link.path()),
            there: link.doc.logging,
            link: Some(link),
        })
    }
}
