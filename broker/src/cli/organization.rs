//! Tenants' own organizations: a vendor's invitation, and what becomes of it on the machine of the tenant's admin.
//!
//! The link has, after `#`, the token for the broker, the fingerprint of the vendor's key, and the key of the invitation. The last
//! two are what the broker could not be trusted with: they came from the vendor's admin. A link that the broker mailed has
//! been in its hands, so it lacks the key, and the vendor's admin has to hear a code.

use std::fs;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hyper::Method;
use tsp_wire::{
    account::signed::Voucher,
    envelope::{SigningKey, Vendor, VendorFingerprint},
};
use zeroize::Zeroizing;

use super::{
    Who,
    admins::spoken,
    commands::{
        Desk, Done, FAILED, new_secret_key, print, print_json, refused, segment_of, tell_mailed,
    },
    profile::{Profile, passphrase},
};
use crate::{
    client::Client,
    keys::{AdminSecret, Sealer, VendorKeys, random, signed_segment, verifying_key},
    model::{
        AcceptTenant, ConfirmTenant, Invitation, Invite, Invited, LinkDoc, NewOrganization,
        OpenInvitation, OrganizationKind, TenantDoc,
    },
};

pub(super) async fn invite(who: &Who, id: &str, email: String) -> Done {
    let desk = Desk::open(who).await?;
    let keys = desk.keys()?;
    let key = SigningKey::generate(&mut random()).ok_or(FAILED)?;
    let voucher = Voucher::Invitation(id);
    let signature = voucher.sign(&keys.signing, keys.vendor, &key.verifying());
    let invite = Invite {
        email,
        key: STANDARD.encode(key.verifying().as_bytes()),
        signature: STANDARD.encode(signature.ok_or(FAILED)?),
    };
    let path = format!("/admin/1/tenants/{}/invite", segment_of(id));
    let invitation: Invitation = desk
        .client
        .ask(Method::POST, &path, &invite)
        .await
        .map_err(refused)?;
    tell_mailed(&invitation);
    let broker = &desk.profile.broker;
    let (token, fingerprint) = (invitation.token, &desk.profile.fingerprint);
    let seed = Zeroizing::new(URL_SAFE_NO_PAD.encode(key.seed()));
    // What follows `#` is sent to nobody by who opens the link.
    print(&format!(
        "{broker}/invitation#{token}.{fingerprint}.{}\n",
        seed.as_str()
    ))?;
    desk.close().await
}

/// A link of an invitation, taken apart.
pub(super) struct InvitationLink<'a> {
    pub(super) broker: &'a str,
    pub(super) token: &'a str,
    pub(super) fingerprint: VendorFingerprint,
    key: Option<SigningKey>,
}

impl<'a> InvitationLink<'a> {
    pub(super) fn read(link: &'a str) -> Done<Self> {
        let wrong = || "that is no link of an invitation".to_owned();
        let (broker, rest) = link.split_once("/invitation#").ok_or_else(wrong)?;
        let mut parts = rest.split('.');
        let token = parts.next().ok_or_else(wrong)?;
        let fingerprint = parts.next().and_then(VendorFingerprint::from_text);
        let key = match parts.next() {
            None => None,
            Some(seed) => {
                let seed = URL_SAFE_NO_PAD.decode(seed).map(Zeroizing::new).ok();
                let seed = seed.ok_or_else(wrong)?;
                let seed = seed.as_slice().try_into().map_err(|_| wrong())?;
                Some(SigningKey::from_seed(seed).ok_or_else(wrong)?)
            }
        };
        Ok(Self {
            broker,
            token,
            fingerprint: fingerprint.ok_or_else(wrong)?,
            key,
        })
    }
}

pub(super) async fn accept(who: &Who, link: &str, name: Option<String>) -> Done {
    let link = InvitationLink::read(link)?;
    let client = Client::new(link.broker, who.allow_http).map_err(refused)?;
    let open = OpenInvitation {
        token: link.token.to_owned(),
    };
    let invited: Invited = client
        .ask(Method::POST, "/admin/1/invitations/open", &open)
        .await
        .map_err(refused)?;
    let vendor_key = verifying_key(&invited.vendor.key).ok_or(FAILED)?;
    if vendor_key.fingerprint() != link.fingerprint {
        return Err(
            "the broker names another vendor than the link: nothing was made or sent".to_owned(),
        );
    }
    let vendor = Vendor {
        segment: u64::try_from(invited.vendor.id).map_err(|_| FAILED)?,
        fingerprint: link.fingerprint,
    };
    let answer = |keys: &VendorKeys, organization| {
        let voucher = match &link.key {
            None => String::new(),
            Some(key) => {
                let voucher = Voucher::Organization(&invited.tenant);
                STANDARD.encode(voucher.sign(key, vendor, &keys.signing.verifying())?)
            }
        };
        Some(AcceptTenant {
            token: link.token.to_owned(),
            organization,
            voucher,
            link_signature: keys.sign_link(vendor, &invited.tenant)?,
        })
    };
    let code = if who.profile.exists() {
        let desk = Desk::open(who).await?;
        if desk.profile.broker != link.broker || desk.kind != OrganizationKind::Tenant {
            return Err(format!(
                "{} is no profile of a tenant's organization at this broker; give --profile a new name to make one",
                who.profile.display()
            ));
        }
        let keys = desk.keys()?;
        let answer = answer(keys, None).ok_or(FAILED)?;
        desk.tell(Method::POST, "/admin/1/invitations/accept", &answer)
            .await?;
        let code = spoken(link.fingerprint, keys.signing.verifying().as_bytes());
        desk.close().await?;
        code
    } else {
        let secret_key = new_secret_key();
        let secret = AdminSecret::derive(&passphrase()?, &secret_key).ok_or(FAILED)?;
        let (id, admin) = (invited.first, invited.first + 1);
        let keys = VendorKeys::generate(u64::try_from(id).map_err(|_| FAILED)?).ok_or(FAILED)?;
        let (admin_keys, public) = secret.new_admin().ok_or(FAILED)?;
        let fingerprint = keys.vendor.fingerprint;
        let profile = Profile::new(link.broker, id, fingerprint, &invited.email, &secret_key);
        // First: an organization whose admin's secret key is lost would be lost.
        profile.store(&who.profile, false)?;
        let organization = NewOrganization {
            id,
            name: name.unwrap_or_else(|| invited.tenant_name.clone()),
            vendor_key: STANDARD.encode(keys.signing.verifying().as_bytes()),
            segment: keys.segment_doc().ok_or(FAILED)?,
            admin,
            email: invited.email.clone(),
            keys: admin_keys,
            sealed_keys: keys.sealed_to_admin(admin, &public).ok_or(FAILED)?,
            certificate: keys.certify(admin, &public).ok_or(FAILED)?,
        };
        let answer = answer(&keys, Some(organization)).ok_or(FAILED)?;
        let told = client.tell(Method::POST, "/admin/1/invitations/accept", &answer);
        if let Err(why) = told.await {
            let _ = fs::remove_file(&who.profile);
            return Err(refused(why));
        }
        print(&format!(
            "Keep {} safe, and a copy of it elsewhere: without it and the passphrase nobody can act for this organization.\n",
            who.profile.display()
        ))?;
        spoken(link.fingerprint, keys.signing.verifying().as_bytes())
    };
    print(&format!(
        "tenant {} of {}\n",
        invited.tenant, invited.vendor.name
    ))?;
    if link.key.is_none() {
        print(&format!(
            "This link was mailed by the broker, who could have changed it. Tell the vendor's admin, but not through the broker, \
             the code {code}\nand seal nothing before you hear from them that it was the right one.\n"
        ))?;
    }
    Ok(())
}

pub(super) async fn confirm(who: &Who, id: &str, heard: &str) -> Done {
    let desk = Desk::open(who).await?;
    let keys = desk.keys()?;
    let tenants: Vec<TenantDoc> = desk.get("/admin/1/tenants").await?;
    let mut tenants = tenants.into_iter();
    let tenant = tenants
        .find(|tenant| tenant.id == id)
        .ok_or("there is no such tenant")?;
    let key = verifying_key(&tenant.organization_key)
        .filter(|key| spoken(keys.vendor.fingerprint, key.as_bytes()) == heard);
    let key = key.ok_or(
        "the broker has another organization for this tenant, or none: a typing error, or the broker put its own there",
    )?;
    let signature = Voucher::Organization(id).sign(&keys.signing, keys.vendor, &key);
    let confirm = ConfirmTenant {
        organization_key: tenant.organization_key,
        signature: STANDARD.encode(signature.ok_or(FAILED)?),
    };
    let path = format!("/admin/1/tenants/{}/confirm", segment_of(id));
    desk.tell(Method::POST, &path, &confirm).await?;
    desk.close().await
}

pub(super) async fn links(who: &Who) -> Done {
    let desk = Desk::open(who).await?;
    let links: Vec<LinkDoc> = desk.get("/admin/1/links").await?;
    print_json(&links)?;
    desk.close().await
}

/// A vendor that the organization is a tenant of.
pub(super) struct Link {
    pub(super) doc: LinkDoc,
}

/// The link to the vendor whose tenant `tenant` is; `vendor` tells which one, if several have such a tenant.
pub(super) async fn link_of(desk: &Desk, tenant: &str, vendor: Option<i64>) -> Done<Link> {
    let links: Vec<LinkDoc> = desk.get("/admin/1/links").await?;
    let mut links = links.into_iter().filter(|link| {
        link.tenant == tenant && vendor.is_none_or(|vendor| link.vendor.id == vendor)
    });
    match (links.next(), links.next()) {
        (Some(doc), None) => Ok(Link { doc }),
        (None, _) => Err("the organization is no such tenant".to_owned()),
        (Some(_), Some(_)) => {
            Err("several vendors have a tenant of this name: --vendor tells which one".to_owned())
        }
    }
}

impl Link {
    pub(super) fn path(&self) -> String {
        let (vendor, tenant) = (self.doc.vendor.id, segment_of(&self.doc.tenant));
        format!("/admin/1/links/{vendor}/{tenant}")
    }

    /// Seals for the vendor's proxies, in the organization's name. Whether it is the vendor of the invitation's link the
    /// organization's own signature says, and not the broker.
    pub(super) fn sealer<'a>(&self, keys: &'a VendorKeys) -> Done<Sealer<'a>> {
        let doc = &self.doc;
        let swapped =
            "the broker names another vendor, or another segment key, than that of the invitation";
        let vendor_key = verifying_key(&doc.vendor.key).ok_or(swapped)?;
        let vendor = Vendor {
            segment: u64::try_from(doc.vendor.id).map_err(|_| swapped)?,
            fingerprint: vendor_key.fingerprint(),
        };
        if !keys.knows_link(vendor, &doc.tenant, &doc.link_signature) {
            return Err(swapped.to_owned());
        }
        let key = signed_segment(vendor, &vendor_key, &doc.vendor.segment).ok_or(swapped)?;
        Ok(Sealer {
            vendor,
            key,
            signing: &keys.signing,
        })
    }
}
