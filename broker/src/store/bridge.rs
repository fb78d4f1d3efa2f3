//! What a vendor bridge looks up: lists by the page, as its API shows them.

use std::collections::HashMap;

use sqlx::{Any, AssertSqlSafe, Row as _, Transaction, any::AnyRow};

use super::{Result, Store, StoreError, account::bridges};
use crate::{
    bridge::{
        call::{AssignmentsOf, Sealing},
        query::{
            AssignmentColumn, AssignmentQuery, AssignmentStatus, KmsConfigColumn, KmsConfigQuery,
            MigrationFilter, Paging, SecretColumn, SecretQuery, TagQuery, TenantColumn,
            TenantQuery, TenantStatus,
        },
        shapes::{
            Assignment, CreatedBy, CreatorType, KmsConfigMeta, KmsType, ListedSecret,
            MigrationStatus, Page, RotationStatus, SecretType, StoredKmsConfig, Tag, Tenant,
            TenantSecret, Timestamp,
        },
    },
    model::{SegmentDoc, SignedPath},
};

type Tx = Transaction<'static, Any>;

const TENANT: &str = "SELECT t.number, t.id, t.name, t.leasing_required, t.claimed, t.archived, t.created, t.updated, t.created_by, \
     (SELECT COUNT(*) FROM invitations i WHERE i.tenant = t.number), \
     COALESCE((SELECT a.kms FROM assignments a WHERE a.tenant = t.number AND a.is_primary = 1), 0), \
     (SELECT COUNT(*) FROM kms_configs k WHERE k.vendor = t.organization) FROM tenants t";

const KMS_CONFIG: &str = "SELECT k.id, k.kind, k.content_schema, k.created_by, k.leasing_allowed, k.created, k.updated, k.key_path, \
     k.revision, k.envelope, (SELECT COUNT(*) FROM assignments a WHERE a.kms = k.id) AS assigned, \
     (SELECT COUNT(*) FROM secrets s WHERE s.kms = k.id), k.path_signer, k.path_signature FROM kms_configs k";

const ASSIGNMENT: &str = "SELECT a.kms, t.id, a.active, a.is_primary, a.created_by, a.created, a.updated FROM assignments a \
     JOIN tenants t ON t.number = a.tenant";

const SECRET: &str = "SELECT s.id, s.edek, s.fingerprint, s.path, s.kms, s.status, s.type, s.created, s.changed, t.id, s.tenant, \
     (SELECT COUNT(*) FROM assignments a WHERE a.tenant = s.tenant AND a.kms = s.kms AND a.is_primary = 1) \
     FROM secrets s JOIN tenants t ON t.number = s.tenant";

/// A value for a placeholder.
#[derive(Debug)]
enum Value {
    Text(String),
    Number(i64),
}

/// A condition under construction.
struct Filter {
    sql: String,
    values: Vec<Value>,
}

impl Filter {
    fn new(vendor: &str, number: i64) -> Self {
        let mut filter = Self {
            sql: String::from(" WHERE 1 = 1"),
            values: Vec::new(),
        };
        filter.and(&format!("{vendor} = ?"), [Value::Number(number)]);
        filter
    }

    /// Adds `condition`, each `?` of which is one of `values`.
    fn and<const N: usize>(&mut self, condition: &str, values: [Value; N]) {
        self.sql.push_str(" AND ");
        let mut parts = condition.split('?');
        self.sql.push_str(parts.next().unwrap_or_default());
        for (part, value) in parts.zip(values) {
            self.values.push(value);
            self.sql.push_str(&format!("${}{part}", self.values.len()));
        }
    }

    fn and_text(&mut self, condition: &str, text: &str) {
        self.and(condition, [Value::Text(text.to_owned())]);
    }

    /// One of `columns` has `text` in it, in whatever case; or the number that is `number` has it for its text.
    fn and_like(&mut self, columns: &[&str], number: Option<&str>, text: &str) {
        let mut conditions = Vec::new();
        let mut values = Vec::new();
        for column in columns {
            conditions.push(format!("lower({column}) LIKE lower(?) ESCAPE '!'"));
            values.push(like(text));
        }
        if let Some((column, wanted)) = number.zip(text.parse::<i64>().ok()) {
            // A number is safe in a statement.
            conditions.push(format!("{column} = {wanted}"));
        }
        let condition = format!("({})", conditions.join(" OR "));
        self.sql.push_str(" AND ");
        let mut parts = condition.split('?');
        self.sql.push_str(parts.next().unwrap_or_default());
        for (part, value) in parts.zip(values) {
            self.values.push(Value::Text(value));
            self.sql.push_str(&format!("${}{part}", self.values.len()));
        }
    }

    /// `column` is one of `numbers`.
    fn and_in(&mut self, column: &str, numbers: &[i64], close: &str) {
        let list: Vec<_> = numbers.iter().map(i64::to_string).collect();
        // Of none nothing is one.
        let list = if list.is_empty() {
            "NULL".to_owned()
        } else {
            list.join(", ")
        };
        self.sql
            .push_str(&format!(" AND {column} IN ({list}){close}"));
    }

    async fn rows(&self, tx: &mut Tx, select: &str, order: &str) -> Result<Vec<AnyRow>> {
        // Made of constants, of numbers and of placeholders.
        let sql = AssertSqlSafe(format!("{select}{}{order}", self.sql));
        let mut query = sqlx::query(sql);
        for value in &self.values {
            query = match value {
                Value::Text(text) => query.bind(text.clone()),
                Value::Number(number) => query.bind(*number),
            };
        }
        Ok(query.fetch_all(&mut **tx).await?)
    }

    /// The rows of a page, and how many pages there are.
    async fn page(
        &self,
        tx: &mut Tx,
        select: &str,
        order: &str,
        paging: Paging,
    ) -> Result<(Vec<AnyRow>, i64)> {
        let from = select
            .rfind(" FROM ")
            .map_or("", |at| select.split_at(at).1);
        let count = self.rows(tx, &format!("SELECT COUNT(*){from}"), "").await?;
        let count = count.first().map_or(Ok(0), |row| row.try_get(0))?;
        let order = format!(
            " ORDER BY {order} LIMIT {} OFFSET {}",
            paging.size,
            paging.offset()
        );
        let rows = self.rows(tx, select, &order).await?;
        Ok((rows, paging.pages(count)))
    }
}

/// A pattern that finds `text` wherever it is.
fn like(text: &str) -> String {
    let text = plain(text);
    let text = text.replace('!', "!!").replace('%', "!%");
    format!("%{}%", text.replace('_', "!_"))
}

/// PostgreSQL's text has no NUL, and nothing that is stored has one.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{1}")
}

fn page<T>(result: Vec<T>, paging: Paging, total_pages: i64) -> Page<T> {
    Page {
        result,
        page: paging.page,
        total_pages,
    }
}

/// Who made things, by what the store knows them by.
struct Creators {
    accounts: HashMap<i64, (String, String)>,
}

impl Creators {
    async fn load(tx: &mut Tx, vendor: i64) -> Result<Self> {
        let rows: Vec<(i64, String, String)> =
            sqlx::query_as("SELECT config, id, name FROM accounts WHERE vendor = $1")
                .bind(vendor)
                .fetch_all(&mut **tx)
                .await?;
        let accounts = rows
            .into_iter()
            .map(|(config, id, name)| (config, (id, name)));
        Ok(Self {
            accounts: accounts.collect(),
        })
    }

    fn of(&self, actor: &str) -> CreatedBy {
        let (word, rest) = actor.split_once(' ').unwrap_or(("", actor));
        let kind = match word {
            "bridge" => CreatorType::Va,
            "account" => CreatorType::Tsp,
            _ => CreatorType::Admin,
        };
        let config = rest.split(' ').next().and_then(|text| text.parse().ok());
        let account = config
            .filter(|_| kind != CreatorType::Admin)
            .and_then(|config: i64| self.accounts.get(&config));
        let (id, name) = match account {
            Some((id, name)) => (id.as_str(), name.as_str()),
            None => (rest, rest),
        };
        CreatedBy {
            id: id.to_owned(),
            name: name.to_owned(),
            kind,
        }
    }
}

fn tag_of(row: &AnyRow) -> Result<Tag> {
    Ok(Tag {
        id: row.try_get(0)?,
        tag_text: row.try_get(1)?,
        default: flag(row, 2)?,
        created: time(row, 3)?,
    })
}

fn flag(row: &AnyRow, at: usize) -> Result<bool> {
    Ok(row.try_get::<i64, _>(at)? != 0)
}

fn time(row: &AnyRow, at: usize) -> Result<Timestamp> {
    Ok(Timestamp(row.try_get(at)?))
}

async fn tags_of(tx: &mut Tx, tenant: i64) -> Result<Vec<Tag>> {
    let rows = sqlx::query(
        "SELECT g.id, g.text, g.is_default, g.created FROM tenant_tags tt JOIN tags g ON g.id = tt.tag \
         WHERE tt.tenant = $1 ORDER BY g.id",
    )
    .bind(tenant)
    .fetch_all(&mut **tx)
    .await?;
    rows.iter().map(tag_of).collect()
}

async fn tenant_of(tx: &mut Tx, row: &AnyRow, creators: &Creators) -> Result<Tenant> {
    let claimed = flag(row, 4)?;
    let primary: i64 = row.try_get(10)?;
    Ok(Tenant {
        id: row.try_get(1)?,
        name: row.try_get(2)?,
        archived: flag(row, 5)?,
        tenant_created_configs: flag(row, 11)?,
        invited: !claimed && flag(row, 9)?,
        key_leasing_required: flag(row, 3)?,
        primary_kms_config_id: Some(primary).filter(|primary| *primary != 0),
        tags: tags_of(tx, row.try_get(0)?).await?,
        created_by: creators.of(row.try_get(8)?),
        created: time(row, 6)?,
        updated: time(row, 7)?,
    })
}

fn config_of(row: &AnyRow, creators: &Creators) -> Result<StoredKmsConfig> {
    Ok(StoredKmsConfig {
        meta: KmsConfigMeta {
            id: row.try_get(0)?,
            kms_type: KmsType::from_text(row.try_get(1)?),
            version: row.try_get(2)?,
            created_by: creators.of(row.try_get(3)?),
            leasing_allowed: flag(row, 4)?,
            assignment_count: row.try_get(10)?,
            secret_count: row.try_get(11)?,
            created: time(row, 5)?,
            updated: time(row, 6)?,
        },
        key_path: serde_json::from_str(row.try_get(7)?).unwrap_or_default(),
        revision: row.try_get(8)?,
        envelope: row.try_get(9)?,
        path: SignedPath {
            signer: row.try_get(12)?,
            signature: row.try_get(13)?,
        },
    })
}

fn assignment_of(row: &AnyRow, creators: &Creators) -> Result<Assignment> {
    Ok(Assignment {
        kms_config_id: row.try_get(0)?,
        tenant_id: row.try_get(1)?,
        active: flag(row, 2)?,
        primary: flag(row, 3)?,
        created_by: creators.of(row.try_get(4)?),
        created: time(row, 5)?,
        updated: time(row, 6)?,
    })
}

fn secret_of(row: &AnyRow) -> Result<TenantSecret> {
    let migration_status = if flag(row, 11)? {
        MigrationStatus::Current
    } else {
        MigrationStatus::NeedsMigration
    };
    Ok(TenantSecret {
        id: row.try_get(0)?,
        encrypted_secret: row.try_get(1)?,
        secret_fingerprint: row.try_get(2)?,
        secret_path: row.try_get(3)?,
        kms_config_id: row.try_get(4)?,
        migration_status,
        rotation_status: RotationStatus::from_text(row.try_get(5)?),
        secret_type: SecretType::from_text(row.try_get(6)?),
        created: time(row, 7)?,
        updated: time(row, 8)?,
    })
}

impl Store {
    /// What the vendor's configurations are sealed with.
    pub(crate) async fn sealing(&self, vendor: i64, reserve: bool) -> Result<Sealing> {
        let mut tx = self.begin_reading().await?;
        let row: (String, i64, String, String) = sqlx::query_as(
            "SELECT vendor_key, epoch, segment_public, segment_signature FROM vendors WHERE id = $1",
        )
        .bind(vendor)
        .fetch_one(&mut *tx)
        .await?;
        let signers = bridges(&mut tx, vendor).await?;
        drop(tx);
        let (vendor_key, epoch, public_key, signature) = row;
        Ok(Sealing {
            vendor_key,
            segment: SegmentDoc {
                epoch: u32::try_from(epoch).unwrap_or_default(),
                public_key,
                signature,
            },
            signers,
            number: if reserve { self.reserve(1).await? } else { 0 },
        })
    }

    /// A page of the vendor's tenants.
    pub(crate) async fn tenant_page(
        &self,
        vendor: i64,
        query: &TenantQuery,
    ) -> Result<Page<Tenant>> {
        let mut filter = Filter::new("t.vendor", vendor);
        if let Some(text) = &query.query {
            filter.and_like(&["t.id", "t.name"], None, text);
        }
        match query.status {
            None => {}
            Some(TenantStatus::Accepted) => filter.and("t.claimed = 1 AND t.archived = 0", []),
            Some(TenantStatus::NotAccepted) => filter.and("t.claimed = 0 AND t.archived = 0", []),
            Some(TenantStatus::Archived) => filter.and("t.archived = 1", []),
        }
        let column = match query.sort_column {
            TenantColumn::Name => "t.name",
            TenantColumn::Id => "t.id",
            TenantColumn::Created => "t.created",
            TenantColumn::Updated => "t.updated",
        };
        let direction = query.sort_direction.sql();
        let order = format!("{column} {direction}, t.number {direction}");
        let mut tx = self.begin_reading().await?;
        let creators = Creators::load(&mut tx, vendor).await?;
        let paging = query.paging();
        let (rows, pages) = filter.page(&mut tx, TENANT, &order, paging).await?;
        let mut tenants = Vec::with_capacity(rows.len());
        for row in &rows {
            tenants.push(tenant_of(&mut tx, row, &creators).await?);
        }
        Ok(page(tenants, paging, pages))
    }

    /// One of them.
    pub(crate) async fn tenant(&self, vendor: i64, id: &str) -> Result<Tenant> {
        let mut filter = Filter::new("t.vendor", vendor);
        filter.and_text("t.id = ?", &plain(id));
        let mut tx = self.begin_reading().await?;
        let creators = Creators::load(&mut tx, vendor).await?;
        let rows = filter.rows(&mut tx, TENANT, "").await?;
        let row = rows
            .first()
            .ok_or(StoreError::NotFound("there is no such tenant"))?;
        tenant_of(&mut tx, row, &creators).await
    }

    /// A page of the vendor's KMS configs.
    pub(crate) async fn kms_page(
        &self,
        vendor: i64,
        query: &KmsConfigQuery,
    ) -> Result<Page<KmsConfigMeta>> {
        let mut filter = Filter::new("k.vendor", vendor);
        if let Some(kind) = query.kms_type {
            filter.and_text("k.kind = ?", kind.as_str());
        }
        if let Some(leasing) = query.leasing_enabled {
            filter.and("k.leasing_allowed = ?", [Value::Number(i64::from(leasing))]);
        }
        let column = match query.sort_column {
            KmsConfigColumn::Assignments => "assigned",
            KmsConfigColumn::Created => "k.created",
            KmsConfigColumn::Updated => "k.updated",
        };
        let direction = query.sort_direction.sql();
        let order = format!("{column} {direction}, k.id {direction}");
        let mut tx = self.begin_reading().await?;
        let creators = Creators::load(&mut tx, vendor).await?;
        let paging = query.paging();
        let (rows, pages) = filter.page(&mut tx, KMS_CONFIG, &order, paging).await?;
        let configs = rows
            .iter()
            .map(|row| Ok(config_of(row, &creators)?.meta))
            .collect::<Result<_>>()?;
        Ok(page(configs, paging, pages))
    }

    /// One of them.
    pub(crate) async fn kms_config(&self, vendor: i64, id: i64) -> Result<StoredKmsConfig> {
        let mut filter = Filter::new("k.vendor", vendor);
        filter.and("k.id = ?", [Value::Number(id)]);
        let mut tx = self.begin_reading().await?;
        let creators = Creators::load(&mut tx, vendor).await?;
        let rows = filter.rows(&mut tx, KMS_CONFIG, "").await?;
        let row = rows
            .first()
            .ok_or(StoreError::NotFound("there is no such KMS config"))?;
        config_of(row, &creators)
    }

    /// A page of the assignments of a tenant, or of a KMS config of the vendor's.
    pub(crate) async fn assignment_page(
        &self,
        vendor: i64,
        of: &AssignmentsOf,
        query: &AssignmentQuery,
    ) -> Result<Page<Assignment>> {
        let mut filter = Filter::new("t.vendor", vendor);
        match of {
            AssignmentsOf::Tenant(tenant) => {
                self.tenant(vendor, tenant).await?;
                filter.and_text("t.id = ?", &plain(tenant));
            }
            AssignmentsOf::Kms(id) => {
                self.kms_config(vendor, *id).await?;
                filter.and("a.kms = ?", [Value::Number(*id)]);
            }
        }
        match query.status {
            None => {}
            Some(AssignmentStatus::Active) => filter.and("a.active = 1", []),
            Some(AssignmentStatus::Disabled) => filter.and("a.active = 0", []),
            Some(AssignmentStatus::Primary) => filter.and("a.is_primary = 1", []),
        }
        if let Some(text) = &query.query {
            filter.and_like(&["t.id", "t.name"], Some("a.kms"), text);
        }
        let column = match query.sort_column {
            AssignmentColumn::Active => "a.active",
            AssignmentColumn::Primary => "a.is_primary",
            AssignmentColumn::Created => "a.created",
            AssignmentColumn::Updated => "a.updated",
        };
        let direction = query.sort_direction.sql();
        let order = format!("{column} {direction}, a.kms {direction}, t.number {direction}");
        let mut tx = self.begin_reading().await?;
        let creators = Creators::load(&mut tx, vendor).await?;
        let paging = query.paging();
        let (rows, pages) = filter.page(&mut tx, ASSIGNMENT, &order, paging).await?;
        let assignments = rows
            .iter()
            .map(|row| assignment_of(row, &creators))
            .collect::<Result<_>>()?;
        Ok(page(assignments, paging, pages))
    }

    /// One of them.
    pub(crate) async fn assignment(
        &self,
        vendor: i64,
        kms: i64,
        tenant: &str,
    ) -> Result<Option<Assignment>> {
        let mut filter = Filter::new("t.vendor", vendor);
        filter.and("a.kms = ?", [Value::Number(kms)]);
        filter.and_text("t.id = ?", &plain(tenant));
        let mut tx = self.begin_reading().await?;
        let creators = Creators::load(&mut tx, vendor).await?;
        let rows = filter.rows(&mut tx, ASSIGNMENT, "").await?;
        rows.first()
            .map(|row| assignment_of(row, &creators))
            .transpose()
    }

    /// A page of the vendor's tags.
    pub(crate) async fn tag_page(&self, vendor: i64, query: &TagQuery) -> Result<Page<Tag>> {
        let mut filter = Filter::new("g.vendor", vendor);
        if let Some(text) = &query.tag_text {
            filter.and_like(&["g.text"], None, text);
        }
        let mut tx = self.begin_reading().await?;
        let paging = query.paging();
        let select = "SELECT g.id, g.text, g.is_default, g.created FROM tags g";
        let (rows, pages) = filter.page(&mut tx, select, "g.id DESC", paging).await?;
        let tags = rows.iter().map(tag_of).collect::<Result<_>>()?;
        Ok(page(tags, paging, pages))
    }

    /// A page of the tenant secrets of a vendor.
    pub(crate) async fn secret_page(
        &self,
        vendor: i64,
        query: &SecretQuery,
    ) -> Result<Page<ListedSecret>> {
        let mut filter = Filter::new("t.vendor", vendor);
        if let Some(Timestamp(since)) = query.updated_since {
            filter.and("s.changed >= ?", [Value::Number(since)]);
        }
        if let Some(Timestamp(since)) = query.created_since {
            filter.and("s.created >= ?", [Value::Number(since)]);
        }
        if let Some(secret_type) = query.secret_type {
            filter.and_text("s.type = ?", secret_type.as_str());
        }
        if let Some(status) = query.rotation_status {
            filter.and_text("s.status = ?", status.as_str());
        }
        if let Some(status) = query.migration_status {
            let exists = if status == MigrationFilter::Current {
                "EXISTS"
            } else {
                "NOT EXISTS"
            };
            let primary = "(SELECT 1 FROM assignments a WHERE a.tenant = s.tenant AND a.kms = s.kms AND a.is_primary = 1)";
            filter.and(&format!("{exists} {primary}"), []);
        }
        if let Some(text) = &query.query {
            filter.and_like(&["t.id", "s.path", "s.fingerprint"], Some("s.kms"), text);
        }
        if let Some(ids) = &query.ids {
            filter.and_in("s.id", ids, "");
        }
        if let Some(tags) = &query.tags {
            let tagged =
                "EXISTS (SELECT 1 FROM tenant_tags tt WHERE tt.tenant = s.tenant AND tt.tag";
            filter.and_in(tagged, tags, ")");
        }
        let column = match query.sort_column {
            SecretColumn::Created => "s.created",
            SecretColumn::Updated => "s.changed",
        };
        let direction = query.sort_direction.sql();
        let order = format!("{column} {direction}, s.id {direction}");
        let mut tx = self.begin_reading().await?;
        let paging = query.paging();
        let (rows, pages) = filter.page(&mut tx, SECRET, &order, paging).await?;
        let mut secrets = Vec::with_capacity(rows.len());
        for row in &rows {
            let tags = tags_of(&mut tx, row.try_get(10)?).await?;
            secrets.push(ListedSecret {
                secret: secret_of(row)?,
                tenant_id: row.try_get(9)?,
                tenant_tags: tags.iter().map(|tag| tag.id).collect(),
            });
        }
        Ok(page(secrets, paging, pages))
    }

    /// One of them.
    pub(crate) async fn tenant_secret(&self, vendor: i64, id: i64) -> Result<TenantSecret> {
        let mut filter = Filter::new("t.vendor", vendor);
        filter.and("s.id = ?", [Value::Number(id)]);
        let mut tx = self.begin_reading().await?;
        let rows = filter.rows(&mut tx, SECRET, "").await?;
        let row = rows.first();
        secret_of(row.ok_or(StoreError::NotFound("there is no such tenant secret"))?)
    }
}
