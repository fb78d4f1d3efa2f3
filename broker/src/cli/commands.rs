//! The commands themselves.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    path::Path,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hyper::Method;
use rand_core::Rng as _;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tsp_wire::{
    Secret,
    envelope::{KEY_BYTES, Kind, PublicKey, VendorFingerprint},
};
use zeroize::Zeroizing;

use super::{
    Audit, Init, Secrets, Segment, Step, Tenant, Who, organization,
    profile::{Profile, passphrase},
};
use crate::{
    client::{Client, ClientError},
    clock,
    keys::{AdminSecret, Object, VendorKeys, random},
    model::{
        ChangeDoc, Invitation, Login, Member, NewOrganization, NewTenant, OrganizationKind,
        Reserve, Reserved, Role, RotateSecret, Rotation, RotationStep, Sealed, SealedContent,
        SecretDoc, Session, TenantChange, TenantDoc,
    },
    store,
};

/// What only a kernel without random bytes, or a number out of range, leads to.
pub(super) const FAILED: &str = "keys cannot be made on this machine";

pub(super) type Done<T = ()> = Result<T, String>;

pub(super) fn refused(why: ClientError) -> String {
    why.to_string()
}

/// An admin who has logged in.
pub(super) struct Entered {
    pub(super) client: Client,
    pub(super) profile: Profile,
    pub(super) secret: AdminSecret,
    pub(super) session: Session,
}

/// Logs in.
pub(super) async fn enter(profile: &Path, allow_http: bool) -> Done<Entered> {
    let path = profile;
    let profile = Profile::load(path)?;
    let unusable = || format!("{} is no profile of an admin", path.display());
    let secret_key = profile.secret_key().ok_or_else(unusable)?;
    let mut client = Client::new(&profile.broker, allow_http).map_err(refused)?;
    let secret = AdminSecret::derive(&passphrase()?, &secret_key).ok_or(FAILED)?;
    let mut id = [0; 16];
    random().fill_bytes(&mut id);
    let mut login = Login {
        vendor: profile.vendor,
        email: profile.email.clone(),
        at: clock::now_s(),
        id: URL_SAFE_NO_PAD.encode(id),
        signature: String::new(),
    };
    let signature = secret.login().sign(&login.statement()).ok_or(FAILED)?;
    login.signature = STANDARD.encode(signature);
    let session: Session = client
        .ask(Method::POST, "/admin/1/login", &login)
        .await
        .map_err(refused)?;
    client.authorize(session.token.clone());
    Ok(Entered {
        client,
        profile,
        secret,
        session,
    })
}

/// An admin at work: logged in, with the organization's keys open.
pub(super) struct Desk {
    pub(super) client: Client,
    pub(super) profile: Profile,
    pub(super) kind: OrganizationKind,
    keys: Option<VendorKeys>,
}

impl Desk {
    pub(super) async fn open(who: &Who) -> Done<Self> {
        let Entered {
            client,
            profile,
            secret,
            session,
        } = enter(&who.profile, who.allow_http).await?;
        let fingerprint = VendorFingerprint::from_text(&profile.fingerprint)
            .ok_or_else(|| format!("{} is no profile of an admin", who.profile.display()))?;
        let keys = match session.role {
            Role::Admin if session.sealed_keys.is_empty() => {
                return Err("no admin has granted you the organization's keys yet".to_owned());
            }
            Role::Admin => Some(
                VendorKeys::open(&secret, &session, fingerprint).map_err(|why| why.to_string())?,
            ),
            Role::Auditor => None,
        };
        Ok(Self {
            client,
            profile,
            kind: session.kind,
            keys,
        })
    }

    pub(super) fn keys(&self) -> Done<&VendorKeys> {
        let keys = self.keys.as_ref();
        keys.ok_or_else(|| "an auditor has no keys to seal with".to_owned())
    }

    pub(super) async fn reserve(&self) -> Done<i64> {
        let reserved: Reserved = self
            .client
            .ask(Method::POST, "/admin/1/numbers", &Reserve { count: 1 })
            .await
            .map_err(refused)?;
        Ok(reserved.first)
    }

    pub(super) async fn tell(&self, method: Method, path: &str, body: &impl Serialize) -> Done {
        self.client.tell(method, path, body).await.map_err(refused)
    }

    pub(super) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Done<T> {
        self.client.get(path).await.map_err(refused)
    }

    pub(super) async fn close(self) -> Done {
        // It would end by itself; a command that did its work has not failed because of this.
        drop(
            self.client
                .tell(Method::POST, "/admin/1/logout", &json!({}))
                .await,
        );
        Ok(())
    }
}

/// A segment of a path.
pub(super) fn segment_of(text: &str) -> String {
    let mut path = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            use std::fmt::Write as _;
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

pub(super) fn print(text: &str) -> Done {
    let mut out = io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|why| format!("cannot print: {why}"))
}

/// Tells that a link was mailed too: not on the output, which a script reads.
pub(super) fn tell_mailed(invitation: &Invitation) {
    if invitation.mailed {
        let told = "A mail with a link is on its way, too. That one lacks the key of this one, so it needs a code.\n";
        drop(io::stderr().write_all(told.as_bytes()));
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Done {
    let text = serde_json::to_string_pretty(value).map_err(|why| why.to_string())?;
    print(&format!("{text}\n"))
}

pub(super) fn new_secret_key() -> Secret<[u8; KEY_BYTES]> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    random().fill_bytes(bytes.as_mut_slice());
    Secret::new(*bytes)
}

pub(super) async fn init(init: Init) -> Done {
    if init.who.profile.exists() {
        return Err(format!(
            "the profile {} is there already",
            init.who.profile.display()
        ));
    }
    let mut client = Client::new(&init.broker, init.who.allow_http).map_err(refused)?;
    client.authorize(init.setup_token);
    let secret_key = new_secret_key();
    let secret = AdminSecret::derive(&passphrase()?, &secret_key).ok_or(FAILED)?;
    let reserved: Reserved = client
        .ask(Method::POST, "/admin/1/numbers", &Reserve { count: 2 })
        .await
        .map_err(refused)?;
    let (vendor, admin) = (reserved.first, reserved.first + 1);
    let keys = VendorKeys::generate(u64::try_from(vendor).map_err(|_| FAILED)?).ok_or(FAILED)?;
    let (admin_keys, public) = secret.new_admin().ok_or(FAILED)?;
    let profile = Profile::new(
        &init.broker,
        vendor,
        keys.vendor.fingerprint,
        &init.email,
        &secret_key,
    );
    // First: a vendor whose admin's secret key is lost would be lost.
    profile.store(&init.who.profile, false)?;
    let new = NewOrganization {
        id: vendor,
        name: init.name,
        vendor_key: STANDARD.encode(keys.signing.verifying().as_bytes()),
        segment: keys.segment_doc().ok_or(FAILED)?,
        admin,
        email: init.email,
        keys: admin_keys,
        sealed_keys: keys.sealed_to_admin(admin, &public).ok_or(FAILED)?,
        certificate: keys.certify(admin, &public).ok_or(FAILED)?,
    };
    if let Err(why) = client.tell(Method::POST, "/admin/1/vendors", &new).await {
        let _ = fs::remove_file(&init.who.profile);
        return Err(refused(why));
    }
    print(&format!(
        "vendor {vendor}, key {}\nKeep {} safe, and a copy of it elsewhere: without it and the passphrase nobody can act for this vendor.\n",
        keys.vendor.fingerprint,
        init.who.profile.display()
    ))
}

pub(super) async fn tenant(command: Tenant) -> Done {
    match command {
        Tenant::Create {
            who,
            id,
            name,
            tags,
        } => {
            let desk = Desk::open(&who).await?;
            let new = NewTenant {
                name: name.unwrap_or_else(|| id.clone()),
                id,
                tags: Some(tags).filter(|tags| !tags.is_empty()),
            };
            desk.tell(Method::POST, "/admin/1/tenants", &new).await?;
            desk.close().await
        }
        Tenant::List { who } => {
            let desk = Desk::open(&who).await?;
            let tenants: Vec<TenantDoc> = desk.get("/admin/1/tenants").await?;
            print_json(&tenants)?;
            desk.close().await
        }
        Tenant::Invite { who, id, email } => organization::invite(&who, &id, email).await,
        Tenant::Accept { who, link, name } => organization::accept(&who, &link, name).await,
        Tenant::Confirm { who, id, code } => organization::confirm(&who, &id, &code).await,
        Tenant::Links { who } => organization::links(&who).await,
        Tenant::Set {
            who,
            id,
            name,
            leasing_required,
            add_tags,
            remove_tags,
        } => {
            let wanted = TenantChange {
                name,
                leasing_required,
                tag_additions: add_tags,
                tag_removals: remove_tags,
            };
            let desk = Desk::open(&who).await?;
            let path = format!("/admin/1/tenants/{}", segment_of(&id));
            desk.tell(Method::PUT, &path, &wanted).await?;
            desk.close().await
        }
        Tenant::Archive { who, id } => {
            let desk = Desk::open(&who).await?;
            let path = format!("/admin/1/tenants/{}/archive", segment_of(&id));
            desk.tell(Method::POST, &path, &json!({})).await?;
            desk.close().await
        }
        Tenant::Delete { who, id } => {
            let desk = Desk::open(&who).await?;
            let path = format!("/admin/1/tenants/{}", segment_of(&id));
            desk.tell(Method::DELETE, &path, &json!({})).await?;
            desk.close().await
        }
    }
}

pub(super) async fn secrets(command: Secrets) -> Done {
    let who = match command {
        Secrets::Export { who } => who,
        Secrets::Rotate {
            who,
            step,
            tenant,
            secret_type,
            path,
        } => {
            let wanted = RotateSecret {
                secret_type,
                path,
                step: match step {
                    Step::Begin => RotationStep::Begin,
                    Step::Commit => RotationStep::Commit,
                },
            };
            let desk = Desk::open(&who).await?;
            let path = format!("/admin/1/tenants/{}/secrets/rotate", segment_of(&tenant));
            desk.tell(Method::POST, &path, &wanted).await?;
            return desk.close().await;
        }
    };
    let desk = Desk::open(&who).await?;
    let secrets: Vec<SecretDoc> = desk.get("/admin/1/secrets").await?;
    print(&exported(&secrets)?)?;
    desk.close().await
}

/// The format of the proxy's own file of tenant secrets, which `tsp recover` opens without any broker.
fn exported(secrets: &[SecretDoc]) -> Done<String> {
    let time = |seconds| {
        OffsetDateTime::from_unix_timestamp(seconds)
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok())
            .ok_or("a time of the broker's is out of range")
    };
    let mut lines = String::new();
    for secret in secrets {
        let line = json!({
            "id": secret.id, "tenant": secret.tenant, "type": secret.secret_type, "path": secret.path,
            "status": secret.status, "created": time(secret.created)?, "changed": time(secret.changed)?,
            "edek": secret.edek,
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    let sha256: String = Sha256::digest(&lines)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let head = json!({
        "format": "tsp-tenant-secrets", "version": 1, "secrets": secrets.len(), "sha256": sha256,
    });
    Ok(format!("{head}\n{lines}"))
}

/// Seals the segment's key to one of its holders.
type Seal = fn(&VendorKeys, i64, &PublicKey) -> Option<String>;

pub(super) async fn segment(command: Segment) -> Done {
    let Segment::Rotate { who } = command;
    let desk = Desk::open(&who).await?;
    let sealed: Sealed<Member> = desk.get("/admin/1/segment").await?;
    let old = desk.keys()?;
    let new = old.next().ok_or(FAILED)?;
    // The broker lists who gets the new key; only the vendor's signature tells that it did not put itself among them.
    let members = |listed: BTreeMap<i64, Member>, seal: Seal| {
        let sealed = listed.into_iter().map(|(number, member)| {
            let key = old.certified(number, &member);
            let sealed = key.and_then(|key| seal(&new, number, &key));
            let sealed = sealed.ok_or_else(|| {
                format!("the key of {number} is not certified by the vendor: the broker put it there. Nothing was rotated")
            })?;
            Ok((number, sealed))
        });
        sealed.collect::<Result<BTreeMap<_, _>, String>>()
    };
    let accounts = members(sealed.accounts, VendorKeys::sealed_to_account)?;
    let admins = members(sealed.admins, VendorKeys::sealed_to_admin)?;
    let numbers: Vec<_> = accounts.keys().map(i64::to_string).collect();
    let holders = numbers.join(", ");
    let anew = |kind: Kind, id: i64, content: &mut SealedContent| {
        let object = Object {
            kind,
            id,
            schema: content.schema,
            revision: content.revision,
        };
        content.envelope = old
            .sealed_anew(&new, &object, &content.envelope).ok_or_else(|| {
            format!("{kind:?} {id} does not open with the segment's key: the broker changed it. Delete it, or put it right first")
        })?;
        Ok::<_, String>(())
    };
    let (mut kms, mut logging) = (sealed.kms, sealed.logging);
    for (id, content) in &mut kms {
        anew(Kind::KmsConfig, *id, content)?;
    }
    for (id, content) in &mut logging {
        anew(Kind::LoggingConfig, *id, content)?;
    }
    let rotation = Rotation {
        segment: new.segment_doc().ok_or(FAILED)?,
        sealed: Sealed {
            version: sealed.version,
            accounts,
            admins,
            kms,
            logging,
        },
    };
    desk.tell(Method::POST, "/admin/1/segment", &rotation)
        .await?;
    // A broker could still list an account that was revoked: the admin knows better.
    print(&format!(
        "epoch {}, for the accounts {holders}\n",
        new.epoch
    ))?;
    desk.close().await
}

async fn list_changes(who: &Who, mut after: i64) -> Done {
    let desk = Desk::open(who).await?;
    loop {
        let path = format!("/admin/1/changes?after={after}");
        let lines: Vec<ChangeDoc> = desk.get(&path).await?;
        let Some(last) = lines.last() else {
            return desk.close().await;
        };
        after = last.number;
        for line in &lines {
            let line = serde_json::to_string(line).map_err(|why| why.to_string())?;
            print(&format!("{line}\n"))?;
        }
    }
}

pub(super) async fn audit(command: Audit) -> Done {
    let who = match command {
        Audit::List { who, after } => return list_changes(&who, after).await,
        Audit::Verify { who } => who,
    };
    let mut desk = Desk::open(&who).await?;
    let (mut number, mut hash) = (0, String::new());
    let seen = (desk.profile.audit_number, desk.profile.audit_hash.clone());
    loop {
        let path = format!("/admin/1/changes?after={number}");
        let lines: Vec<ChangeDoc> = desk.get(&path).await?;
        if lines.is_empty() {
            break;
        }
        for line in &lines {
            if line.number != number + 1 || store::chained(&hash, line) != line.hash {
                return Err(format!(
                    "the audit trail is broken at line {}: a line was changed, taken away or put in",
                    number + 1
                ));
            }
            (number, hash) = (line.number, line.hash.clone());
            if number == seen.0 && hash != seen.1 {
                return Err(format!(
                    "the audit trail is another one than it was: line {number} had another hash when it was last checked"
                ));
            }
        }
    }
    if number < seen.0 {
        return Err(format!(
            "the audit trail is shorter than it was: {number} lines now, and {} when it was last checked",
            seen.0
        ));
    }
    (desk.profile.audit_number, desk.profile.audit_hash) = (number, hash);
    desk.profile.store(&who.profile, true)?;
    print(&format!("{number} lines, whole\n"))?;
    desk.close().await
}
