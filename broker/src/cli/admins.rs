//! An organization's admins: invited by a link, and given its keys by another admin who has heard which key is theirs.

use std::fmt::Write as _;

use hyper::Method;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tsp_wire::envelope::{KEY_BYTES, VendorFingerprint};

use super::{
    Admins,
    commands::{
        Desk, Done, FAILED, enter, new_secret_key, print, print_json, refused, tell_mailed,
    },
    organization::InvitationLink,
    profile::{Profile, passphrase},
};
use crate::{
    client::Client,
    keys::{AdminSecret, public_key},
    model::{AcceptAdmin, Accepted, AdminDoc, Grant, Invitation, InviteAdmin, Notify, Role},
};

/// What tells two people that they mean the same organization and the same new key: 128 bits.
pub(super) fn spoken(organization: VendorFingerprint, key: &[u8; KEY_BYTES]) -> String {
    let mut text = String::new();
    let digest = Sha256::new_with_prefix(organization.as_bytes()).chain_update(key);
    for byte in digest.finalize().iter().take(16) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

pub(super) async fn run(command: Admins) -> Done {
    match command {
        Admins::List { who } => {
            let desk = Desk::open(&who).await?;
            let admins: Vec<AdminDoc> = desk.get("/admin/1/admins").await?;
            print_json(&admins)?;
            desk.close().await
        }
        Admins::Invite {
            who,
            email,
            auditor,
        } => {
            let desk = Desk::open(&who).await?;
            let role = if auditor { Role::Auditor } else { Role::Admin };
            let invitation: Invitation = desk
                .client
                .ask(
                    Method::POST,
                    "/admin/1/admins",
                    &InviteAdmin { email, role },
                )
                .await
                .map_err(refused)?;
            tell_mailed(&invitation);
            let (broker, fingerprint) = (&desk.profile.broker, &desk.profile.fingerprint);
            // What follows `#` is sent to nobody; the fingerprint pins the vendor.
            let token = invitation.token;
            print(&format!("{broker}/invitation#{token}.{fingerprint}\n"))?;
            desk.close().await
        }
        Admins::Accept { who, link, account } => {
            let InvitationLink {
                broker,
                token,
                fingerprint,
                ..
            } = InvitationLink::read(&link)?;
            if who.profile.exists() {
                return Err(format!(
                    "the profile {} is there already",
                    who.profile.display()
                ));
            }
            let client = Client::new(broker, who.allow_http).map_err(refused)?;
            let (secret_key, keys) = match account {
                None => {
                    let secret_key = new_secret_key();
                    let secret = AdminSecret::derive(&passphrase()?, &secret_key).ok_or(FAILED)?;
                    (secret_key, secret.new_admin().ok_or(FAILED)?.0)
                }
                // The same keys, in one more organization.
                Some(profile) => {
                    let entered = enter(&profile, who.allow_http).await?;
                    let keys = entered.secret.keys_of(&entered.session.vault);
                    let keys = keys.map_err(|why| why.to_string())?;
                    (entered.profile.secret_key().ok_or(FAILED)?, keys)
                }
            };
            let public = public_key(&keys.public_key).ok_or(FAILED)?;
            let answer = AcceptAdmin {
                token: token.to_owned(),
                keys,
            };
            let accepted: Accepted = client
                .ask(Method::POST, "/admin/1/admins/accept", &answer)
                .await
                .map_err(refused)?;
            let profile = Profile::new(
                broker,
                accepted.vendor,
                fingerprint,
                &accepted.email,
                &secret_key,
            );
            profile.store(&who.profile, false)?;
            print(&format!(
                "Keep {} safe, and a copy of it elsewhere. Tell the admin who invited you, but not through the broker, that your key is {}\n",
                who.profile.display(),
                spoken(fingerprint, public.as_bytes())
            ))
        }
        Admins::Grant { who, email, key } => {
            let desk = Desk::open(&who).await?;
            let admin = find(&desk, &email).await?;
            let keys = desk.keys()?;
            let fingerprint = keys.vendor.fingerprint;
            let public = public_key(&admin.public_key)
                .filter(|public| spoken(fingerprint, public.as_bytes()) == key);
            let public = public.ok_or(
                "the broker has another key for this admin: a typing error, or the broker put its own there",
            )?;
            let grant = Grant {
                public_key: admin.public_key,
                sealed_keys: keys.sealed_to_admin(admin.id, &public).ok_or(FAILED)?,
                certificate: keys.certify(admin.id, &public).ok_or(FAILED)?,
                epoch: keys.epoch.0,
            };
            let path = format!("/admin/1/admins/{}/grant", admin.id);
            desk.tell(Method::POST, &path, &grant).await?;
            desk.close().await
        }
        Admins::Notify { who, notify } => {
            let desk = Desk::open(&who).await?;
            desk.tell(Method::PUT, "/admin/1/notify", &Notify { notify })
                .await?;
            desk.close().await
        }
        Admins::Remove { who, email } => {
            let desk = Desk::open(&who).await?;
            let admin = find(&desk, &email).await?;
            let path = format!("/admin/1/admins/{}", admin.id);
            desk.tell(Method::DELETE, &path, &json!({})).await?;
            print("Removed. They had the segment's key: run `tsp-broker segment rotate`.\n")?;
            desk.close().await
        }
    }
}

async fn find(desk: &Desk, email: &str) -> Done<AdminDoc> {
    let admins: Vec<AdminDoc> = desk.get("/admin/1/admins").await?;
    let mut admins = admins.into_iter();
    admins
        .find(|admin| admin.email == email)
        .ok_or_else(|| "there is no such admin".to_owned())
}
